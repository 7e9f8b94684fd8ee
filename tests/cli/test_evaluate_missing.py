"""`cmsa-fast evaluate` where expressions cannot be evaluated: an error, or counted with --allow-missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.refer_layout import small_refcoco, square
from support.small_evaluation import content_of, evaluate_run

Capture = pytest.CaptureFixture[str]


def test_unusable_image_is_an_error_unless_allowed(run: Path, tmp_path: Path, capsys: Capture) -> None:
    images = tmp_path / "data/images/mscoco/images/train2014"
    (images / "COCO_train2014_000000000011.jpg").unlink()
    assert evaluate_run(run, "--split=train") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cmsa-fast:" in line]
    assert "000000000011.jpg" in line
    assert "--allow-missing leaves out what cannot be used" in line
    assert not (run / "evaluation-refer-train-native" / "evaluation.json").exists()
    out = tmp_path / "out"
    assert evaluate_run(run, "--split=train", "--allow-missing", f"--out={out}") == 3
    shown = capsys.readouterr().out
    assert "1 expressions are in no figure (1 expressions with an unusable image or mask)." in shown
    assert "1 records or images could not be used" in shown
    content = content_of(out)
    assert content["expressions"] == 4
    assert content["coverage"]["missing"] == content["coverage"]["unreadable"] == 1
    assert len(content["errors"]) == 1
    (images / "COCO_train2014_000000000007.jpg").write_bytes(b"")
    assert evaluate_run(run, "--split=train", "--allow-missing") == 1
    assert "None of the 5 expressions can be evaluated" in capsys.readouterr().err


def test_damaged_records_are_an_error_unless_allowed(run: Path, tmp_path: Path, capsys: Capture) -> None:
    """Records that cannot be read when the split is opened are in the report and in the exit status."""
    layout = small_refcoco(tmp_path / "data")
    for number in range(10):
        layout.add_reference(13, [square(5, 5, 11)], [f"dog {number}"], split="val")
    for reference in layout.references[4:9]:
        reference["sentences"][0]["sent"] = None
    layout.write()
    assert evaluate_run(run) == 1
    assert "--allow-missing leaves out" in capsys.readouterr().err
    assert evaluate_run(run, "--allow-missing") == 3
    shown = capsys.readouterr().out
    assert "5 expressions or more are in no figure (5 damaged records)." in shown
    content = content_of(run / "evaluation-refer-val-native")
    coverage = content["coverage"]
    assert (coverage["measured"], coverage["missing"], coverage["unusable_records"]) == (7, 5, 5)
    assert len(content["errors"]) == 5


def test_repeated_reference_is_reported_but_nothing_is_missing(run: Path, tmp_path: Path, capsys: Capture) -> None:
    layout = small_refcoco(tmp_path / "data")
    layout.references.append(layout.references[3])
    layout.write()
    assert evaluate_run(run) == 1
    assert "reference 4 repeats ref_id 103" in capsys.readouterr().err
    assert evaluate_run(run, "--allow-missing") == 0
    shown = capsys.readouterr().out
    assert "NOT EVALUATED" not in shown
    assert "1 records or images could not be used" in shown


def test_expressions_without_a_word_are_an_error_unless_allowed(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    layout = small_refcoco(tmp_path / "data")
    layout.references[3]["sentences"][0]["sent"] = "."
    layout.write()
    assert evaluate_run(run) == 1
    message = "refcoco (unc) val has 1 expressions without a word. --allow-missing"
    assert message in capsys.readouterr().err
    assert evaluate_run(run, "--allow-missing") == 3
    assert "1 expressions are in no figure (1 expressions without a word)." in capsys.readouterr().out
