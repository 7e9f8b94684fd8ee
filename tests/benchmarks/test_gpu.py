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
from support.separable_oracle import draw

from benchmarks.gpu import budget, correctness, forms, metadata, parity, peers, plan, speed, summary, timing
from cmsa_fast.kernels import reference

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "benchmarks" / "gpu" / "schema.json").read_text(encoding="utf-8"))


def run(out: Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
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
    assert checked == {(operation, name) for operation in forms.LITERAL for name in plan.OWN}
    measured = {(record["operation"], record["form"]) for record in summary.measured(results)}
    assert measured >= {
        (operation, name) for operation in ("separable", "joint") for name in ("torch", "naive", "chunked")
    }  # fmt: skip
    assert {("tail", "naive"), ("projection", "naive"), ("level", "torch"), ("model", "torch")} <= measured
    sizes = [record["size"] for record in summary.measured(results, operation="separable")]
    assert all(any(option in size for size in sizes) for option in ("masked", "images", "logits"))
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
    order = [*plan.OWN, *plan.PEERS]
    assert order.index("sdpa efficient") < order.index("naive")


def test_comparisons_include_losses(results: dict[str, Any]) -> None:
    lines = summary.format_tables(results).splitlines()
    slower = [line for line in lines if "(SLOWER)" in line]
    assert any("separable" in line and "torch / naive" in line for line in slower)  # with so few tokens
    assert any("not measured" in line for line in lines)


def test_plots_are_drawn(trial: tuple[Path, dict[str, Any]]) -> None:
    out, results = trial
    drawn = {name for name, reason in results["plots"].items() if reason is None}
    assert drawn == {"time.png", "joint.png", "roofline.png"}
    for name in drawn:
        with Image.open(out / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(2**24)) > 50


def test_jobs_beyond_the_time_limit_are_skipped_with_a_reason(tmp_path: Path) -> None:
    results = run(tmp_path, "--device", "cpu", "--quick", "--minutes", "0.0001", status=3)
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
    "direct_share": lambda results: first_measured(results).update(direct_share=1.1),
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
    headline = {"form": "triton", "dtype": "bfloat16", "pass": "forward"}
    headline["size_name"] = plan.size_name(plan.HEADLINE)
    if share is not None:
        results["speed"].append({**first_measured(results), **headline, "floor_share_of_matmul": share})
    goal = summary.summarise(results)["goals"][0]
    assert (goal["at_least"], goal["measured"], goal["met"]) == (0.5, share, met)


@pytest.mark.parametrize(("launches", "met"), [(25, True), (26, False)])
def test_goal_is_met_up_to_its_number_of_launches(results: dict[str, Any], launches: int, met: bool) -> None:
    results["kernels"].append({"operation": "level", "status": "measured", "launches": {"forward": launches}})
    goal = next(one for one in summary.summarise(results)["goals"] if one["goal"] == "level, forward: launches")
    assert (goal["at_most"], goal["measured"], goal["met"]) == (25, launches, met)


@pytest.mark.parametrize(
    ("checked", "own", "peer", "status"),
    [
        ("passed", "measured", "failed", 0),
        ("passed", "out of memory", "measured", 0),
        ("skipped", "measured", "measured", 3),
        ("out of memory", "skipped", "measured", 3),
        ("skipped", "inexact", "measured", 1),
        ("failed", "measured", "measured", 1),
        ("passed", "failed", "measured", 1),
    ],
)
def test_exit_status(checked: str, own: str, peer: str, status: int) -> None:
    speed_records = [{"own": True, "status": own}, {"own": False, "status": peer}]
    content = {"correctness": [{"status": "passed"}, {"status": checked}], "speed": speed_records}
    assert summary.exit_status(content) == status


def test_help_documents_the_exit_statuses() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "  3  nothing is known to be wrong, but some cases of correctness were not checked" in text


def test_predicted_times_stand_beside_measured_ones(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = first_measured(results)
    record |= {"form": "triton", "own": True}
    assert record["operation"] == "separable"
    call = {"family": "separable", "arithmetic": record["dtype"], "call": record["pass"], "variant": "plain"}
    rows = [
        {**call, **record["size"], "architecture": number, "predicted_us": 10.0 * number} for number in (90, 100)
    ]
    path = tmp_path / "compile.json"
    table = {"columns": list(rows[0]), "rows": [list(row.values()) for row in rows]}
    path.write_text(json.dumps({"calls": table}), encoding="utf-8")
    monkeypatch.setattr(summary, "COMPILE_REPORT", path)
    results["metadata"]["device"]["capability"] = [9, 0]
    summary.add_shares(results)
    jsonschema.validate(results, SCHEMA)
    assert record["predicted_ms"] == 0.9
    assert sum(one["predicted_ms"] is not None for one in summary.measured(results)) == 1
    lines = summary.format_tables(results).splitlines()
    assert any(" triton forward  " in line and "0.900" in line.split() for line in lines)


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
    literal = forms.LITERAL["separable"]
    ours_errors = budget.errors(budget.run(literal, ours), truth)
    assert ours_errors == pytest.approx(errors(literal, case, exact(case)), rel=1e-6)


def test_budget_refuses_nan_infinity_and_large_errors() -> None:
    literal, eps = [[1e-3]], 1e-4
    kept = {
        error: budget.verdict(["result"], [[error]], literal, eps)["result"]["kept"]
        for error in (1.9e-3, 2.1e-3, float("nan"), float("inf"))
    }
    assert list(kept.values()) == [True, False, False, False]
    assert budget.verdict(["result"], [[1.9e-4]], [[0.0]], eps)["result"]["kept"]


def test_least_budget_is_the_rounding_of_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    case = plan.TINY_CASES["joint"][0][0]
    job = {"operation": "joint", "form": "torch", "device": "cpu"}
    monkeypatch.setitem(forms.LITERAL, "joint", forms.OWN["joint"]["torch"])
    allowed = {
        dtype: correctness.measure({**job, "dtype": dtype}, case)["errors"]["result"]["allowed"]
        for dtype in ("tf32", "float32")
    }
    assert allowed == {"tf32": 2 * 2.0**-10, "float32": 2 * 2.0**-23}


def test_inexact_form_is_in_no_comparison(results: dict[str, Any]) -> None:
    for record in results["speed"]:
        if record["operation"] == "tail" and record["form"] == "torch":
            record |= {"status": "inexact", "reason": "beyond the budget"}
            record["parity"]["kept"] = False
    jsonschema.validate(results, SCHEMA)
    assert not any(
        "torch / naive" in line for line in summary.format_tables(results).splitlines() if "tail" in line
    )


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


@pytest.mark.parametrize("operation", ["separable", "joint"])
def test_literal_form_over_blocks_equals_the_literal_form(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = plan.joint_size(8, 2, 57, 33) if operation == "joint" else plan.separable_size(19, 3, 2, 8)
    case = forms.draw(operation, size, torch.float64, "cpu", logits=4)
    expected = parity.literal(operation, size, case)
    monkeypatch.setattr(parity, "_MOST_PAIRS", 1)
    monkeypatch.setattr(peers, "_CHUNK", 16)
    monkeypatch.setitem(forms.LITERAL, operation, lambda *_, **__: pytest.fail("all pairs at once"))
    for one, two in zip(parity.literal(operation, size, case), expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)


def test_full_size_correctness_runs_over_blocks() -> None:
    cases = [case for job in plan.correctness("cuda", False, full=True) for case in job["cases"].values()]
    sizes = [case["size"] for case in cases if "words" in case["size"] and "channels" not in case["size"]]
    assert len(sizes) == 2
    assert all(parity._pairs("separable", size) == 32000**2 > parity._MOST_PAIRS for size in sizes)


def test_direct_share_counts_rows_below_the_floor() -> None:
    """Two places whose queries agree with the keys, except with one of the words."""
    size = plan.separable_size(2, 2, 1, 2, images=1)
    case = forms.draw("separable", size, torch.float32, "cpu")
    place = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]])
    word = torch.tensor([[[0.0, 0.0], [300.0, 0.0]]])
    features = (place * 10, place, place, word, word, word)
    with_word = budget.Case(features, None, case.grad, case.options)
    # Rows: (place -10, word 300) peaks at different keys, by e^-20 and e^-600: its sum is below 2^-60.
    assert forms.direct_share(with_word) == 0
    steep = budget.Case((place * 30, *features[1:]), None, case.grad, case.options)
    assert forms.direct_share(steep) == 0.25
    masked = budget.Case(steep.features, torch.tensor([[True, False]]), case.grad, case.options)
    assert forms.direct_share(masked) == 0


def test_plan_lists_the_forms() -> None:
    assert set(forms.OWN) == set(plan.OPERATIONS) == {*forms.LITERAL, "model"} == set(forms.FEATURES)
    assert all(tuple(table) == plan.OWN for table in forms.OWN.values())
    assert set(plan.PEERS) == set(peers.ATTENTION)
    assert set(plan.TAIL_PEERS) == set(peers.PEERS["tail"]) == set(peers.PEERS["projection"])


def test_plan_on_a_gpu_covers_the_grid() -> None:
    jobs = plan.speed("cuda", quick=False)
    separable = [job for job in jobs if job["operation"] == "separable"]
    half = [job["size"] for job in separable if job["dtype"] == "bfloat16"]
    grid = [tuple(size[name] for name in ("places", "words", "batch")) for size in half if len(size) == 4]
    assert len(grid) == len(set(grid))
    words = {1600: (3, 5, 10, 20), 400: (5, 20), 6400: (5, 20)}
    assert set(grid) == {(p, n, b) for p in words for n in words[p] for b in (1, 8, 32)}
    assert jobs[0]["size"] == plan.HEADLINE
    assert {size["batch"] // size["images"] for size in half if "images" in size} == {1, 3, 7}
    assert {size["logits"] for size in half if "logits" in size} == {8, 16, 24}
    assert any("masked" in size for size in half)
    assert {job["dtype"] for job in separable} == set(plan.PRECISIONS)
    assert {job["operation"] for job in jobs} == set(plan.OPERATIONS)
    owed = [tuple(sorted(key.items())) for job in jobs for _, key in plan.keys(job)]
    assert len(owed) == len(set(owed))
    widths = {job["size"]["width"] for job in jobs if job["operation"] == "joint"}
    assert widths == {512, 256, 128, 64}
    checked = {job["dtype"] for job in plan.correctness("cuda", quick=False)}
    assert checked == set(plan.PRECISIONS)


def test_peers_over_all_tokens_do_not_warm_up_beside_other_jobs() -> None:
    warm = plan.warm_ups(plan.speed("cuda", quick=False))
    peers_ = {(job["operation"], name) for job in warm for name in job["items"] if name not in plan.OWN}
    assert peers_ == {("tail", "naive compiled"), ("projection", "naive compiled")}
    assert {job["operation"] for job in warm if job["items"] == ["triton"]} == set(plan.OPERATIONS)


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
