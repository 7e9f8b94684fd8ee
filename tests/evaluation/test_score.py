"""Groups of expressions, coverage of the split, checksum and percent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.refer_layout import small_refcoco
from support.small_evaluation import random_results
from support.small_training import Listed, images

from cmsa_fast.data import Source, open_split
from cmsa_fast.data.errors import ErrorCollector
from cmsa_fast.evaluation.conventions import CONVENTIONS
from cmsa_fast.evaluation.score import checksum, metrics, percent, score

NATIVE = CONVENTIONS["native"]


def test_groups_contain_every_expression_once() -> None:
    results = [
        replace(result, words=1 + index % 24, share=[0.0, 0.004, 0.03, 0.1, 0.2, 0.9][index % 6])
        for index, result in enumerate(random_results(1))
    ]
    scored = score(results, Listed(images(1, 1).samples * 120), NATIVE)
    for groups, count in ((scored.by_length, 6), (scored.by_size, 6)):
        assert len(groups) == count
        assert sum(group["expressions"] for group in groups.values()) == 120
    for name, words in {"1-2 words": (1, 2), "3 words": (3,), "over 20 words": range(21, 25)}.items():
        chosen = [one for one in results if one.words in words]
        expected = {"expressions": len(chosen), **metrics(chosen, NATIVE)}
        assert scored.by_length[name] == expected
    assert list(scored.by_size)[:2] == ["nothing in the image", "up to 1 % of the image"]


def test_coverage_counts_what_was_lost_when_the_split_was_opened(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.references[1]["sentences"][0]["sent"] = None  # damaged: the whole record is unusable
    layout.references[2]["sentences"][1]["sent"] = "."
    source = Source(form="refer", root=layout.write())
    dataset = open_split(source, "train", errors=ErrorCollector(strict=False))
    coverage = score(random_results(1)[:2], dataset, NATIVE).coverage
    assert (coverage.measured, coverage.published) == (2, 120624)
    lost = (coverage.unusable_records, coverage.without_words, coverage.unreadable)
    assert lost == (1, 1, 1)
    assert coverage.missing == 3


def test_checksum_depends_on_the_expressions_alone() -> None:
    results = random_results(1, images=3)
    expected = checksum(results)
    assert expected == checksum(results[::-1])
    assert expected == checksum([replace(one, convention="cmsa", index=7) for one in results])
    assert expected == checksum(random_results(2, images=3))
    changes = ({"expression": "dog"}, {"sent_id": 99}, {"share": 0.5}, {"width": 101})
    for change in changes:
        assert checksum([replace(results[0], **change), *results[1:]]) != expected  # type: ignore[arg-type]
    assert checksum(results[1:]) != expected


@pytest.mark.parametrize(("value", "text"), [(0.743081, "74.31"), (0, "0.00"), (1, "100.00"), (0.00004, "0.00")])
def test_percent_has_two_decimals(value: float, text: str) -> None:
    assert percent(value) == text
