"""The committed figures of a level have the form that the benchmark writes today."""

import json
from pathlib import Path

import pytest

from benchmarks import attention, level

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_level_figures_are_whole() -> None:
    figures = json.loads((RESULTS / "level-cpu.json").read_text(encoding="utf-8"))
    assert set(figures["machine"]) == set(attention.machine())
    assert figures["sizes"]["places"] == level.PLACES
    assert figures["sizes"]["visual_channels"] == list(level.LEVELS.values())
    assert figures["goal"] == level.GOAL
    assert figures["rounds"] >= 1
    assert set(figures["cases"]) == set(level.NAMES)
    for name, row in figures["cases"].items():
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"], name
        assert row["peak_mib"] >= 0, name
    median = {name: row["median_s"] for name, row in figures["cases"].items()}
    for form, share in figures["levels_share_of_backbone"].items():
        levels = sum(median[f"{name} {form} forward"] for name in ("Res3", "Res4", "Res5"))
        assert share == pytest.approx(levels / median["backbone forward"])
    assert set(figures["levels_share_of_backbone"]) == {"before", "after", "folded"}
    table = level.format_table(figures)
    assert f"{figures['levels_share_of_backbone']['folded']:.1%} folded" in table


def test_cases_are_as_large_as_the_paper_s_model() -> None:
    assert level.PLACES == 1600
    assert len(level.NAMES) == len(set(level.NAMES)) == 23


def test_peak_memory_needs_a_known_case(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["level", "--peak-of", "Res6 after forward"])
        with pytest.raises(SystemExit):
            level.main()
    assert "Res3 before forward" in capsys.readouterr().err
