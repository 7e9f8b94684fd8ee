"""The CSV file of results by expression."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.small_evaluation import random_results

from cmsa_fast.data.types import Sample
from cmsa_fast.evaluation.conventions import CONVENTIONS
from cmsa_fast.evaluation.results import measure, read_results, write_results

# As `cmsa-fast evaluate` wrote it when the column was named "sentence".
OLD_FILE = """\
index,image_id,ref_id,sent_id,sentence,words,kind,names_nothing,height,width,intersection,predicted,true,share,iou,\
convention,union
0,7,100,0,"left, cup",2,,False,23,37,90,120,150,0.17626321974148062,0.5,native,180
"""


def test_file_returns_what_was_written(tmp_path: Path) -> None:
    results, path = random_results(1), tmp_path / "sentences.csv"
    write_results(path, results)
    assert read_results(path) == results
    # With a byte order mark, as spreadsheets save it.
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_results(path) == results


def test_file_of_an_earlier_version(tmp_path: Path) -> None:
    path = tmp_path / "sentences.csv"
    path.write_text(OLD_FILE)
    (result,) = read_results(path)
    assert (result.expression, result.sent_id, result.union) == ("left, cup", 0, 180)


def test_unpaired_surrogate_is_written_as_an_escape(tmp_path: Path) -> None:
    odd = replace(random_results(1)[0], expression="dog \ud83d left")
    write_results(tmp_path / "sentences.csv", [odd])
    assert read_results(tmp_path / "sentences.csv") == [replace(odd, expression="dog \\ud83d left")]


Change = Callable[[str], str]
DAMAGE: dict[str, tuple[Change, str]] = {
    "no column": (lambda text: text.replace("intersection", "inter", 1), "no column 'intersection'"),
    "no number": (lambda text: text.replace(",80,100,", ",80,wide,", 1), "width must be of type int"),
    "cut short": (lambda text: text[: len(text) // 2], "must be of type"),
    "no row": (lambda text: text.splitlines()[0], "has no expression"),
    "iou": (lambda text: re.sub(r"0\.\d+,native", "nan,native", text, count=1), "iou must be from"),
    "share": (lambda text: re.sub(r",[\d.]+(,[\d.]+,native)", r",7\1", text, count=1), "got 7.0"),
    "boolean": (lambda text: text.replace(",False,", ",no,", 1), "names_nothing must be of type bool; got 'no'"),
    "rules": (lambda text: text.replace(",native,", ",naive,", 1), "convention must be one of"),
    "pixels": (lambda text: re.sub(r",100,\d+,", ",100,7777777,", text), "does not fit masks of"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGE[damage]
    path = tmp_path / "sentences.csv"
    write_results(path, [replace(one, expression="dog") for one in random_results(1)])
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_results(path)
    assert str(path) in str(caught.value)


def test_ignored_pixels_count_in_neither_mask() -> None:
    true, predicted, ignore = (torch.zeros(6, 10, dtype=torch.bool) for _ in range(3))
    true[:, :5] = predicted[:, 3:8] = ignore[:, 4:7] = True
    sample = Sample(torch.zeros(3, 6, 10, dtype=torch.uint8), true, "the dog", 1, 2, 3)
    plain = measure(0, sample, predicted, CONVENTIONS["native"])
    assert (plain.intersection, plain.predicted, plain.true) == (12, 30, 30)
    result = measure(0, replace(sample, ignore=ignore), predicted, CONVENTIONS["native"])
    # Columns 4 to 6 are left out: the truth keeps 0 to 3, the prediction 3 and 7.
    assert (result.intersection, result.predicted, result.true) == (6, 12, 24)
    assert result.iou == 6 / 30
    assert result.share == plain.share == 0.5
    nothing_counts = replace(sample, ignore=torch.ones_like(true))
    result = measure(0, nothing_counts, predicted, CONVENTIONS["native"])
    assert (result.union, result.iou) == (0, 1)


def test_ignored_pixels_are_stretched_with_the_truth() -> None:
    lavt = CONVENTIONS["lavt"]
    true, ignore = torch.zeros(2, 40, 60, dtype=torch.bool)
    true[8:30, 10:40] = ignore[20:40, :25] = True
    sample = Sample(torch.zeros(3, 40, 60, dtype=torch.uint8), true, "the dog", 1, 2, 3, ignore=ignore)
    result = measure(0, sample, torch.ones(480, 480, dtype=torch.bool), lavt)
    # 12 x 8 pixels of 480 x 480 for each of 40 x 60.
    assert (result.true, result.predicted) == ((660 - 150) * 96, (2400 - 500) * 96)
