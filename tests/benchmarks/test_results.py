"""The committed figures of the CPU benchmarks have the format that the benchmarks write, and are consistent."""

import json
import mmap
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import attention, evaluation, export, level, measuring, metrics, paper_step, score

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}-cpu.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "module", "cases"),
    [
        ("attention", attention, attention.NAMES),
        ("level", level, level.NAMES),
        ("metrics", metrics, metrics.NAMES),
        ("evaluation", evaluation, evaluation.FORMS),
        ("export", export, export.NAMES),
        ("score", score, score.FORMS),
    ],
    ids=["attention", "level", "metrics", "evaluation", "export", "score"],
)
def test_committed_figures_are_complete(name: str, module: ModuleType, cases: tuple[str, ...]) -> None:
    figures = read(name)
    assert set(figures["machine"]) >= set(measuring.machine())
    assert set(figures["cases"]) == set(cases)
    for case, row in figures["cases"].items():
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"], case
        assert row.get("peak_mib", 0) >= 0, case
    assert module.format_table(figures).count("\n") > 2


def test_attention_rates_and_ratios_follow_from_the_lower_quartiles() -> None:
    figures = read("attention")
    rows = figures["cases"]
    for name, row in rows.items():
        assert row["min_s"] <= row["lower_quartile_s"] <= row["median_s"]
        flops = attention.build(name).flops
        if flops is not None:
            assert row["rounds"] == attention.ROUNDS
            assert row["gflop_per_s"] == pytest.approx(flops / row["lower_quartile_s"] / 1e9)
    ratio = rows["sdpa forward"]["lower_quartile_s"] / rows["separable forward"]["lower_quartile_s"]
    assert figures["ratios"]["sdpa / separable, forward"] == pytest.approx(ratio)
    best = max(rows[f"matmul {size}"]["gflop_per_s"] for size in attention.MATMUL_SIZES)
    share = rows["separable forward"]["gflop_per_s"] / best
    assert rows["separable forward"]["share_of_matmul"] == pytest.approx(share)


def test_level_figures_have_the_paper_s_sizes_and_follow_from_the_medians() -> None:
    figures = read("level")
    assert figures["sizes"]["places"] == level.PLACES == 1600
    assert figures["sizes"]["visual_channels"] == list(level.LEVELS.values())
    assert len(level.NAMES) == len(set(level.NAMES)) == 23
    median = {name: row["median_s"] for name, row in figures["cases"].items()}
    assert set(figures["levels_share_of_backbone"]) == {"before", "after", "folded"}
    for form, share in figures["levels_share_of_backbone"].items():
        levels = sum(median[f"{name} {form} forward"] for name in ("Res3", "Res4", "Res5"))
        assert share == pytest.approx(levels / median["backbone forward"])
    table = level.format_table(figures)
    assert f"{figures['levels_share_of_backbone']['folded']:.1%} folded" in table


def test_evaluation_and_metrics_figures_follow_from_the_medians() -> None:
    for form, row in read("evaluation")["cases"].items():
        rate = evaluation.EXPRESSIONS / row["median_s"]
        assert row["expressions_per_second"] == pytest.approx(rate), form
    assert read("metrics")["sizes"]["expressions"] == metrics.EXPRESSIONS


def test_paper_step_figures_are_complete() -> None:
    figures = read("paper-step")
    assert set(figures["stages"]) == {"backbone", "CMSA", "fusion"}
    assert 0 < figures["peak_gib"] < 24
    assert "step" in paper_step.format_table(figures)


def test_cases_are_timed_in_turn_after_one_run_to_warm_up() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = measuring.time_interleaved(runs, {"a": 4, "b": 2})
    assert calls == ["a", "a", "b", "a", "b", "a", "a"]
    assert [len(times) for times in seconds.values()] == [4, 2]


def test_peak_memory_of_a_case_is_measured_in_a_new_process() -> None:
    assert 60 < measuring.added_peak_mib(build_allocation, "64 MiB") < 80


def test_cases_in_processes_of_their_own_run_in_turn(tmp_path: Path) -> None:
    runs = measuring.run_in_processes(build_log, {f"{tmp_path}/log a": 2, f"{tmp_path}/log b": 1})
    assert [len(of_case) for of_case in runs.values()] == [3, 2]
    calls = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [name for name, _ in calls] == ["a", "b", "a", "b", "a"]
    assert len({process for _, process in calls} - {str(os.getpid())}) == 2
    for run in (run for of_case in runs.values() for run in of_case):
        assert run.seconds > 0
        assert run.page_faults > 2**24 / mmap.PAGESIZE / 2


def build_allocation(name: str) -> Any:
    return lambda: bytearray(b"x") * (int(name.split()[0]) * 2**20)


def build_log(name: str) -> Any:
    """A function that writes its name and process to a file, and uses 16 MiB of new memory."""
    path, case = name.split()

    def run() -> None:
        with open(path, "a", encoding="ascii") as log:
            log.write(f"{case} {os.getpid()}\n")
        with mmap.mmap(-1, 2**24) as memory:
            memory.write(bytes(2**24))

    return run


def test_command_writes_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figures.json"
    monkeypatch.setattr("sys.argv", ["benchmark", "--rounds", "2", "--json", str(path)])
    measuring.run_command("", lambda rounds: {"rounds": rounds}, str, 9)
    assert json.loads(path.read_text(encoding="utf-8")) == {"rounds": 2}


def test_command_refuses_no_rounds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", "--rounds", "0"])
    with pytest.raises(SystemExit):
        measuring.run_command("", dict, str, 9)
    assert "--rounds must be at least 1; got 0." in capsys.readouterr().err
