"""Mirroring a sample together with its words."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest
import torch

from cmsa_fast.data.flip import horizontal_flip, swap_left_right
from cmsa_fast.data.types import Sample


@pytest.mark.parametrize(
    ("expression", "mirrored"),
    [
        ("left man", "right man"),
        ("man on the right.", "man on the left."),
        ("left of the right one", "right of the left one"),
        ("leftmost", "rightmost"),
        ("the left-most dog", "the right-most dog"),
        ("lefthand side", "righthand side"),
        ("right-hand side", "left-hand side"),
        ("the rightest of the lefties", "the leftest of the righties"),
        ("bottomright", "bottomleft"),
        ("dog to theleft", "dog to theright"),
        ("LEFT Right lEFT", "RIGHT Left right"),
        ("left/right", "right/left"),
        ("brightleft", "brightright"),
        ("the bright upright bottle", "the bright upright bottle"),
        ("Brightest leftover, alright", "Brightest leftover, alright"),
        ("the red car", "the red car"),
        ("", ""),
    ],
)
def test_words(expression: str, mirrored: str) -> None:
    assert swap_left_right(expression) == mirrored


def test_only_strings_are_expressions() -> None:
    with pytest.raises(TypeError, match="expression must be a str"):
        swap_left_right(None)  # type: ignore[arg-type]


def test_image_mask_and_expression_turn_together() -> None:
    image = torch.arange(3 * 5 * 7, dtype=torch.uint8).reshape(3, 5, 7)
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask[1, 2] = True
    sample = Sample(image, mask, "left dot", image_id=3, ref_id=4, sent_id=5, kind="place")
    mirrored = horizontal_flip(sample)
    assert mirrored.expression == "right dot"
    assert mirrored.mask.nonzero().tolist() == [[1, 4]]
    for column in range(7):
        assert torch.equal(mirrored.image[..., column], image[..., 6 - column])
    assert (mirrored.image_id, mirrored.ref_id, mirrored.sent_id) == (3, 4, 5)
    assert mirrored.kind == "place"
    assert sample.expression == "left dot"
    assert sample.mask.nonzero().tolist() == [[1, 2]]
    again = horizontal_flip(mirrored)
    assert torch.equal(again.image, image)
    assert torch.equal(again.mask, mask)
    assert again.expression == sample.expression


def test_real_expressions_mirrored_twice_are_as_before(real: Path) -> None:
    total = changed = 0
    for path in sorted((real / "splits").glob("*.csv.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                mirrored = swap_left_right(row["sent"])
                assert swap_left_right(mirrored) == row["sent"]
                total += 1
                changed += mirrored != row["sent"]
    assert total > 60_000
    assert changed > 10_000
