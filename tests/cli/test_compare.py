"""`cmsa-fast compare`: the report, the JSON file, and mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.small_evaluation import random_results

from cmsa_fast.cli import main
from cmsa_fast.evaluation.results import write_results

Capture = pytest.CaptureFixture[str]


def test_report_and_file(tmp_path: Path, capsys: Capture) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        results = random_results(seed, shift=0.1 * seed, no_target=True)
        write_results(tmp_path / name / "sentences.csv", results)
    command = ["compare", f"{tmp_path}/a", f"{tmp_path}/b/sentences.csv", "--resamples", "100"]
    assert main([*command, "--out", f"{tmp_path}/c.json", "--expressions", "3"]) == 0
    shown = capsys.readouterr().out
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["expressions"] == 120
    assert "120 expressions about 40 images" in shown
    assert shown.count("next line") == 3
    rows = {line[:14].strip(): line[14:].split() for line in shown.splitlines()}
    titles = {"mean_iou": "mean IoU", "gIoU": "gIoU", "cIoU": "cIoU", "N_acc": "N-acc"}
    for name, title in {**titles, "T_acc": "T-acc", "precision@0.9": "prec@0.9"}.items():
        measure = content["measures"][name]
        assert measure["difference"] == pytest.approx(measure["second"] - measure["first"])
        first, second, change, low, _, high, *mark = rows[title]
        percents = [f"{100 * measure[key]:.2f}" for key in ("first", "second")]
        assert [first, second] == percents
        assert change == f"{100 * measure['difference']:+.2f}"
        assert bool(mark) is not (measure["low"] <= 0 <= measure["high"])
        assert (float(low), float(high)) == pytest.approx(
            (100 * measure["low"], 100 * measure["high"]), abs=0.00501
        )
    assert len(content["changed"]) == content["better"] + content["worse"]


def test_mistakes(tmp_path: Path, capsys: Capture) -> None:
    write_results(tmp_path / "a.csv", random_results(1))
    command = ["compare", f"{tmp_path}/a.csv"]
    (tmp_path / "c.json").touch()
    for more, message in (
        ([f"{tmp_path}/nowhere"], "nowhere"),
        ([f"{tmp_path}/a.csv", "--out", f"{tmp_path}/c.json"], "not overwritten"),
        ([f"{tmp_path}/a.csv", "--out", f"{tmp_path}/none/c.json"], f"no folder {tmp_path}/none."),
        ([f"{tmp_path}/a.csv", "--expressions", "-1"], "--expressions must be at least 0"),
    ):
        assert main([*command, *more]) == 1
        assert message in capsys.readouterr().err


def test_conventions_and_a_single_image_are_pointed_out(tmp_path: Path, capsys: Capture) -> None:
    first, second = (random_results(seed, images=1, shift=seed / 5) for seed in (0, 2))
    write_results(tmp_path / "a.csv", first)
    write_results(tmp_path / "b.csv", [replace(one, convention="cmsa") for one in second])
    command = ["compare", f"{tmp_path}/a.csv", f"{tmp_path}/b.csv", "--resamples", "50"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "different conventions, native and cmsa" in shown
    # With one image all bootstrap samples are the same.
    assert not [line for line in shown.splitlines() if line.endswith("  *")]
    write_results(tmp_path / "b.csv", second)
    assert main(command) == 0
    assert "different conventions" not in capsys.readouterr().out
