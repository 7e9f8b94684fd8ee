"""The GPU benchmark end to end on the CPU at tiny sizes, and its parts."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from PIL import Image
from support.oracle import errors, exact
from support.separable_oracle import draw, fused

from benchmarks.gpu import budget, forms, metadata, parity, peers, plan, speed, summary, timing
from cmsa_fast.kernels import reference

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "benchmarks" / "gpu" / "schema.json").read_text(encoding="utf-8"))


def run(out: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "gpu.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("gpu")
    return out, run(out, "--device", "cpu", "--quick")


@pytest.fixture
def results(trial: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return copy.deepcopy(trial[1])


def test_trial_measures_every_form_that_runs_on_a_cpu(results: dict[str, Any]) -> None:
    jsonschema.validate(results, SCHEMA)
    assert results["metadata"]["finished"]
    assert results["metadata"]["device"]["torch"] == torch.__version__
    assert {record["status"] for record in results["correctness"]} == {"passed"}
    checked = {(record["operation"], record["form"]) for record in results["correctness"]}
    assert checked == {(operation, name) for operation, table in forms.OWN.items() for name in table}
    measured = {(record["operation"], record["form"]) for record in summary.measured(results)}
    assert measured >= {
        (operation, name) for operation in ("separable", "joint") for name in ("torch", "naive", "chunked")
    }  # fmt: skip
    assert {("tail", "naive"), ("level", "torch"), ("level", "naive")} <= measured
    for record in summary.measured(results):
        assert record["low_ms"] <= record["median_ms"] <= record["high_ms"]


def test_every_record_has_its_own_key(results: dict[str, Any]) -> None:
    fields = ("operation", "size_name", "dtype", "form", "pass", "case", "name")
    for section in ("correctness", "ceilings", "speed", "kernels"):
        keys = [tuple(record.get(field) for field in fields) for record in results[section]]
        assert len(keys) == len(set(keys))


def test_form_that_raises_is_recorded_and_the_rest_goes_on(results: dict[str, Any]) -> None:
    """The memory-efficient backend does not exist on a CPU; forms after it do."""
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


def test_comparisons_include_losses(results: dict[str, Any]) -> None:
    rows = results["summary"]["comparisons"]
    pairs = {
        (own["size_name"], own["pass"], own["form"], other["form"])
        for own in summary.measured(results, operation="separable", own=True)
        for other in summary.measured(results, operation="separable", size_name=own["size_name"], own=False)
    }
    assert {
        (row["size_name"], row["pass"], row["form"], row["than"])
        for row in rows
        if row["operation"] == "separable"
    } == pairs
    assert "slower" in {row["verdict"] for row in rows}  # with so few tokens nothing is gained
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


def test_jobs_beyond_the_time_limit_are_skipped_with_a_reason(tmp_path: Path) -> None:
    results = run(tmp_path, "--device", "cpu", "--quick", "--minutes", "0.0001")
    jsonschema.validate(results, SCHEMA)
    for section in ("correctness", "ceilings", "speed"):
        records = results[section]
        assert records
        assert {record["status"] for record in records} == {"skipped"}
        assert all("minutes was reached" in record["reason"] for record in records)
    assert not any(results["plots"][name] is None for name in results["plots"])


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "schema": lambda results: results.update(schema=0),
    "metadata": lambda results: results["metadata"].pop("commit"),
    "status": lambda results: results["speed"][0].update(status="fine"),
    "reason": lambda results: results["speed"][0].update(reason=None),
    "rounds": lambda results: first_measured(results).update(rounds=0),
    "median_ms": lambda results: first_measured(results).update(median_ms=None),
    "kept": lambda results: first_measured(results)["parity"].update(kept=False),
    "errors": lambda results: first_measured(results)["parity"].update(errors=[None]),
    "graph": lambda results: first_measured(results).update(graph={}),
    "met": lambda results: results["summary"]["goals"][0].update(met=True),
    "times_faster": lambda results: results["summary"]["comparisons"][0].update(
        times_faster=0.5, verdict="faster"
    ),
}


def first_measured(results: dict[str, Any]) -> dict[str, Any]:
    return next(record for record in results["speed"] if record["status"] == "measured")


@pytest.mark.parametrize("changed", CHANGES)
def test_schema_refuses_what_is_wrong(results: dict[str, Any], changed: str) -> None:
    CHANGES[changed](results)
    with pytest.raises(jsonschema.ValidationError) as caught:
        jsonschema.validate(results, SCHEMA)
    assert changed in [*caught.value.absolute_path, "metadata"]


@pytest.mark.parametrize(("share", "met"), [(0.6, True), (0.4, False), (None, None)])
def test_goal_is_met_from_its_share_on(results: dict[str, Any], share: float | None, met: bool | None) -> None:
    headline = {"form": "tiled", "dtype": "bfloat16", "pass": "forward"}
    headline["size_name"] = plan.size_name(plan.HEADLINE)
    if share is not None:
        results["speed"].append({**first_measured(results), **headline, "floor_share_of_matmul": share})
    goal = summary.summarise(results)["goals"][0]
    assert (goal["at_least"], goal["measured"], goal["met"]) == (0.5, share, met)


def test_git_finds_paths_from_the_root_of_the_checkout() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("the tests do not run in a git checkout")
    assert metadata._git("ls-files", "--", "benchmarks/__init__.py") == "benchmarks/__init__.py"


def test_times_are_summarised_by_percentiles() -> None:
    expected = {"median_ms": 3.0, "low_ms": 1.8, "high_ms": 4.2, "rounds": 5}
    assert timing.summary([5.0, 1.0, 3.0, 2.0, 4.0]) == pytest.approx(expected)


def test_errors_equal_those_of_the_tests_oracle() -> None:
    case = draw(23, 6, 11, batch=2, scale=0.7)
    truth = [torch.from_numpy(part) for part in exact(case)]
    ours = budget.Case(case.inputs, case.mask, case.grad, case.options)
    ours_errors = budget.errors(budget.run(forms.OWN["separable"]["fused"], ours), truth)
    assert ours_errors == pytest.approx(errors(fused, case, exact(case)), rel=1e-6)


def test_budget_refuses_nan_infinity_and_large_errors() -> None:
    literal, eps = [[1e-3]], 1e-4
    kept = {
        error: budget.verdict(["result"], [[error]], literal, eps)["result"]["kept"]
        for error in (1.9e-3, 2.1e-3, float("nan"), float("inf"))
    }
    assert list(kept.values()) == [True, False, False, False]
    assert budget.verdict(["result"], [[1.9e-4]], [[0.0]], eps)["result"]["kept"]


def test_inexact_form_is_in_no_comparison(results: dict[str, Any]) -> None:
    for record in results["speed"]:
        if record["operation"] == "tail" and record["form"] == "torch":
            record |= {"status": "inexact", "reason": "beyond the budget"}
            record["parity"]["kept"] = False
    results["summary"] = summary.summarise(results)
    jsonschema.validate(results, SCHEMA)
    assert not any(row["operation"] == "tail" for row in results["summary"]["comparisons"])


@pytest.mark.parametrize("name", ["naive", "chunked"])
def test_peers_equal_the_literal_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_CHUNK", 16)  # several blocks
    size = plan.separable_size(19, 3, 2, 8)
    case = forms.draw("separable", size, torch.float64, "cpu")
    bound = parity.bind("separable", name, size, case)
    result, *gradients = bound.both()
    outputs = [result, *bound.form.gradients(gradients, case.features)]
    expected = budget.run(reference.cross_modal_attention, case)
    for one, two in zip(outputs, expected, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-6, atol=1e-7)


def test_plan_lists_the_forms() -> None:
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
        if job["operation"] == "separable" and job["dtype"] == "bfloat16" and "fused" in job["items"]
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
def test_plan_is_used_forward_and_backward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_form_without_a_backward_is_measured_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(grad: torch.Tensor) -> None:
        raise RuntimeError("no backward here")

    def without_backward(*parts: Any, **options: Any) -> torch.Tensor:
        result = whole(*parts, **options)
        if result.requires_grad:
            result.register_hook(refuse)
        return result

    whole = peers.PEERS["joint"]["naive"]
    monkeypatch.setitem(peers.PEERS["joint"], "naive", without_backward)
    job = next(job for job in plan.speed("cpu", quick=True) if job["operation"] == "joint")
    records: list[dict[str, Any]] = []
    speed.measure(job, ["naive", "chunked"], lambda *_: None, records.append, lambda: True)
    by_key = {(record["form"], record["pass"]): record for record in records}
    assert len(by_key) == len(records) == 6
    assert by_key["naive", "forward"]["status"] == "measured"
    for part in ("backward", "forward + backward"):
        assert by_key["naive", part]["status"] == "failed"
        assert "no backward here" in by_key["naive", part]["reason"]
        assert by_key["chunked", part]["status"] == "measured"
