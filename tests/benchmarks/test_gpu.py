"""The GPU benchmark from end to end on the CPU at tiny sizes; what fails or does not fit the time is written."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.oracle import draw, errors, exact, fused

from benchmarks.gpu import budget, driver, forms, parity, peers, plan, schema, speed, summary
from cmsa_fast.kernels import reference

ROOT = Path(__file__).parents[2]


def run(out: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "gpu.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("gpu")
    return out, run(out, "--device", "cpu", "--quick")


def test_trial_measures_every_form_that_runs_on_a_cpu(trial: tuple[Path, dict[str, Any]]) -> None:
    _, results = trial
    schema.check(results)
    assert results["metadata"]["finished"]
    assert results["metadata"]["device"]["torch"] == torch.__version__
    assert {record["status"] for record in results["correctness"]} == {"passed"}
    checked = {(record["operation"], record["form"]) for record in results["correctness"]}
    assert checked == {
        (operation, name) for operation, table in forms.OWN.items() for name in table
    }
    measured = {(record["operation"], record["form"]) for record in summary.measured(results)}
    assert measured >= {
        (operation, name) for operation in ("separable", "joint") for name in ("torch", "naive", "chunked")
    }  # fmt: skip
    assert {("tail", "naive"), ("level", "torch"), ("level", "naive")} <= measured


def test_a_form_that_raises_is_written_down_and_the_rest_goes_on(
    trial: tuple[Path, dict[str, Any]],
) -> None:
    """The memory-efficient backend does not exist on a CPU; it stands before others that do."""
    _, results = trial
    records = [
        record
        for record in results["speed"]
        if record["operation"] == "joint" and record["form"] == "sdpa efficient"
    ]
    assert [record["pass"] for record in records] == list(plan.PASSES)
    for record in records:
        assert record["status"] == "failed"
        assert record["reason"].startswith("RuntimeError")
    order = [*plan.OWN["joint"], *plan.PEERS]
    assert order.index("sdpa efficient") < order.index("naive")


def test_comparisons_hold_losses_beside_wins(trial: tuple[Path, dict[str, Any]]) -> None:
    _, results = trial
    rows = results["summary"]["comparisons"]
    pairs = {
        (own["size_name"], own["pass"], own["form"], other["form"])
        for own in summary.measured(results, operation="separable", own=True)
        for other in summary.measured(
            results, operation="separable", size_name=own["size_name"], own=False
        )
    }
    assert {
        (row["size_name"], row["pass"], row["form"], row["than"])
        for row in rows
        if row["operation"] == "separable"
    } == pairs
    assert "slower" in {row["verdict"] for row in rows}  # of so few tokens, nothing can be saved
    table = summary.format_tables(results)
    assert "(SLOWER)" in table
    assert "not measured" in table


def test_plots_are_drawn(trial: tuple[Path, dict[str, Any]]) -> None:
    out, results = trial
    drawn = {name for name, reason in results["plots"].items() if reason is None}
    assert drawn == {"time.png", "joint.png", "roofline.png"}
    for name in drawn:
        with Image.open(out / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(2**24)) > 50


def test_what_does_not_fit_the_time_is_skipped_with_a_reason(tmp_path: Path) -> None:
    results = run(tmp_path, "--device", "cpu", "--quick", "--minutes", "0.0001")
    schema.check(results)
    for section in ("correctness", "ceilings", "speed"):
        records = results[section]
        assert records
        assert {record["status"] for record in records} == {"skipped"}
        assert all("minutes was spent" in record["reason"] for record in records)
    assert not any(results["plots"][name] is None for name in results["plots"])


WORKER = """
import json, sys, time
for line in sys.stdin:
    job = json.loads(line)
    def say(**message):
        print(json.dumps(message), flush=True)
    for item in job["items"]:
        say(step=item, limit_s=1.0)
        if item == "crash":
            sys.exit("it crashed")
        if item == "hang":
            time.sleep(60)
        if item != "silent":
            say(record={"name": item, "status": "measured", "reason": None})
        if item == "break":
            say(done=True, error=None, broken="the device is gone")
            sys.exit()
    say(done=True, error="it went wrong" if "silent" in job["items"] else None, broken=None)
"""


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["a", "crash", "b"], {"a": None, "crash": "it crashed", "b": None}),
        (["hang", "b"], {"hang": "no answer within 1 s", "b": None}),
        (["a", "break", "b"], {"a": None, "break": None, "b": None}),
        (["a", "silent"], {"a": None, "silent": "it went wrong"}),
    ],
)
def test_a_worker_that_dies_costs_one_item(
    items: list[str], expected: dict[str, str | None]
) -> None:
    given: dict[str, str | None] = {}
    worker = driver.WorkerProcess({}, (sys.executable, "-c", WORKER))
    job = {"kind": "ceilings", "device": "cpu", "items": items}
    try:
        # What a worker measured before it died is not measured again.
        driver.do(job, worker, driver.Deadline(30), lambda _, record: add(given, record))
    finally:
        worker.stop()
    assert set(given) == set(expected)
    for name, reason in expected.items():
        found = given[name]
        assert found is None if reason is None else found is not None and reason in found


def add(given: dict[str, str | None], record: dict[str, Any]) -> None:
    assert record["name"] not in given
    given[record["name"]] = record["reason"]


def test_a_deadline_ends_a_job_under_way() -> None:
    given: dict[str, str | None] = {}
    worker = driver.WorkerProcess({}, (sys.executable, "-c", WORKER))
    job = {"kind": "ceilings", "device": "cpu", "items": ["a", "hang", "b"]}
    driver.do(job, worker, driver.Deadline(0.8), lambda _, record: add(given, record))
    assert set(given) == {"a", "hang", "b"}
    assert given["a"] is None
    assert "minutes was spent" in str(given["hang"])
    assert "minutes was spent" in str(given["b"])


CHANGES: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("schema", lambda results: results.update(schema=0)),
    ("metadata", lambda results: results["metadata"].pop("commit")),
    ("status", lambda results: results["speed"][0].update(status="fine")),
    ("reason", lambda results: results["speed"][0].update(reason=None)),
    ("key", lambda results: results["speed"].append(results["speed"][0])),
    ("percentiles", lambda results: first_measured(results).update(low_ms=1e9)),
    ("median_ms", lambda results: first_measured(results).update(median_ms=float("nan"))),
    ("parity", lambda results: first_measured(results)["parity"].update(kept=False)),
    ("graph", lambda results: first_measured(results).update(graph={})),
    ("met", lambda results: results["summary"]["goals"][0].update(met=True)),
    ("verdict", lambda results: results["summary"]["comparisons"][0].update(times_faster=0.0)),
]


def first_measured(results: dict[str, Any]) -> dict[str, Any]:
    return next(record for record in results["speed"] if record["status"] == "measured")


@pytest.mark.parametrize(("said", "change"), CHANGES, ids=[name for name, _ in CHANGES])
def test_schema_says_what_is_wrong(
    trial: tuple[Path, dict[str, Any]], said: str, change: Callable[[dict[str, Any]], object]
) -> None:
    results = copy.deepcopy(trial[1])
    if said == "verdict":
        results["summary"]["comparisons"][0]["verdict"] = "faster"
    change(results)
    with pytest.raises(ValueError, match=said):
        schema.check(results)


def test_errors_are_those_of_the_tests_oracle() -> None:
    case = draw(23, 6, 11, batch=2, scale=0.7)
    truth = [torch.from_numpy(part) for part in exact(case)]
    ours = budget.Case(case.features, case.word_mask, case.grad, {"image_index": case.image_index})
    found = budget.errors(budget.run(forms.OWN["separable"]["fused"], ours), truth)
    assert found == pytest.approx(errors(fused, case, exact(case)), rel=1e-6)


def test_budget_refuses_what_is_no_number_and_what_is_too_far_off() -> None:
    literal, eps = [[1e-3]], 1e-4
    kept = {
        error: budget.verdict(["result"], [[error]], literal, eps)["result"]["kept"]
        for error in (1.9e-3, 2.1e-3, float("nan"), float("inf"))
    }
    assert list(kept.values()) == [True, False, False, False]
    assert budget.verdict(["result"], [[1.9e-4]], [[0.0]], eps)["result"]["kept"]


def test_inexact_form_does_not_count(trial: tuple[Path, dict[str, Any]]) -> None:
    results = copy.deepcopy(trial[1])
    for record in results["speed"]:
        if record["operation"] == "tail" and record["form"] == "torch":
            record |= {"status": "inexact", "reason": "too far off"}
            record["parity"]["kept"] = False
    results["summary"] = summary.summarise(results)
    schema.check(results)
    assert not any(row["operation"] == "tail" for row in results["summary"]["comparisons"])


@pytest.mark.parametrize("name", ["naive", "chunked"])
def test_peers_compute_the_same_as_the_literal_form(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_CHUNK", 16)  # several blocks
    size = plan.separable_size(19, 3, 2, 8)
    case = forms.draw("separable", size, torch.float64, "cpu")
    bound = parity.bind("separable", name, size, case)
    result, *gradients = bound.both()
    found = [result, *bound.form.gradients(gradients, case.features)]
    expected = budget.run(reference.cross_modal_attention, case)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-6, atol=1e-7)


def test_plan_knows_the_forms() -> None:
    for operation, table in forms.OWN.items():
        assert set(table) == set(plan.OWN[operation])
        assert plan.OWN[operation][-1] == "torch"
    assert set(plan.PEERS) == set(peers.ATTENTION)
    assert set(plan.TAIL_PEERS) == set(peers.PEERS["tail"]) == set(peers.PEERS["level"])


def test_plan_on_a_gpu_covers_the_grid() -> None:
    jobs = plan.speed("cuda", quick=False)
    sizes = [
        tuple(job["size"][name] for name in ("places", "words", "batch"))
        for job in jobs
        if job["operation"] == "separable"
        and job["dtype"] == "bfloat16"
        and "fused" in job["items"]
    ]
    grid = {(p, n, b) for p in (400, 1600, 6400) for n in (3, 5, 10, 20) for b in (1, 8, 32)}
    assert set(sizes) == grid
    assert jobs[0]["size"] == plan.HEADLINE
    owed = [tuple(sorted(key.items())) for job in jobs for _, key in plan.keys(job)]
    assert len(owed) == len(set(owed))
    widths = {job["size"]["width"] for job in jobs if job["operation"] == "joint"}
    assert widths == {512, 256, 128, 64}
    checked = {job["dtype"] for job in plan.correctness("cuda", quick=False)}
    assert checked == set(plan.PRECISIONS)


@pytest.mark.parametrize("name", ["tiled", "fused"])
def test_a_plan_is_taken_forward_and_backward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmsa_fast.kernels.separable_attention.triton import plans as separable

    taken: list[str] = []

    def watched(plan_: str, pass_: str) -> Callable[..., Any]:
        original = getattr(separable.PLANS[plan_], pass_)

        def call(*arguments: Any) -> Any:
            taken.append(f"{plan_} {pass_}")
            return original(*arguments)

        return call

    for plan_ in ("tiled", "fused"):
        for pass_ in ("forward", "backward"):
            monkeypatch.setattr(separable.PLANS[plan_], pass_, watched(plan_, pass_))
    size = plan.separable_size(9, 3, 2, 8)
    parity.bind("separable", name, size, forms.draw("separable", size, torch.float32, "cpu")).both()
    assert taken == [f"{name} forward", f"{name} backward"]


def test_a_form_without_a_backward_is_measured_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, result: torch.Tensor) -> torch.Tensor:
            return result.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no backward here")

    whole = peers.PEERS["joint"]["naive"]
    monkeypatch.setitem(
        peers.PEERS["joint"],
        "naive",
        lambda *parts, **options: Refused.apply(whole(*parts, **options)),
    )
    job = next(job for job in plan.speed("cpu", quick=True) if job["operation"] == "joint")
    records: list[dict[str, Any]] = []
    speed.measure(job, ["naive", "chunked"], lambda *_: None, records.append, lambda: True)
    found = {(record["form"], record["pass"]): record for record in records}
    assert len(found) == len(records) == 6
    assert found["naive", "forward"]["status"] == "measured"
    for part in ("backward", "forward + backward"):
        assert found["naive", part]["status"] == "failed"
        assert "no backward here" in found["naive", part]["reason"]
        assert found["chunked", part]["status"] == "measured"
