"""Tests of recognising data sets by the names of their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmsa_fast.data.check.discovery import discover
from cmsa_fast.data.source import Source


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_every_form_is_recognised(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "refcoco/refs(unc).p",
        "refcoco/instances.json",
        "refcocog/refs(google).p",
        "refcocog/refs(umd).p",
        "own data/refs(me).p",
        "own data/refs(you).json",
        "grefcoco/grefs(unc).json",
        "grefcoco/instances.json",
        "anns/refcoco/train.json",
        "anns/refcocog_u/val.json",
        "masks/refcoco/1.png",
        "images/train2014/COCO_train2014_000000000009.jpg",
        "hub/data/val-00000-of-00001.parquet",
        "flat/val.parquet",
        "berkeley/referit_query_test.json",
        "fast/dataset.json",
        ".hidden/refs(unc).p",
    )
    found = discover(tmp_path)
    assert found.gaps == ()
    assert found.sources == (
        Source(form="refer", root=tmp_path, name="own data", split_by="me"),
        Source(form="refer", root=tmp_path, name="own data", split_by="you"),
        Source(form="refer", root=tmp_path, name="refcoco", split_by="unc"),
        Source(form="refer", root=tmp_path, name="refcocog", split_by="google"),
        Source(form="refer", root=tmp_path, name="refcocog", split_by="umd"),
        Source(form="grefcoco", root=tmp_path, split_by="unc"),
        Source(form="anns-masks", root=tmp_path, name="refcoco"),
        Source(form="anns-masks", root=tmp_path, name="refcocog_u"),
        Source(form="referit", root=tmp_path / "berkeley"),
        Source(form="converted", root=tmp_path / "fast"),
        Source(form="parquet", root=tmp_path / "flat"),
        Source(form="parquet", root=tmp_path / "hub"),
    )


@pytest.mark.parametrize(
    ("file", "form"),
    [
        ("lmdb/refcoco/train.lmdb", "anns-masks"),
        ("dataset.json", "converted"),
        ("referit_query_val.json", "referit"),
        ("a.parquet", "parquet"),
        ("data/a.parquet", "parquet"),
        ("data/split/referit_query_val.json", "referit"),
        ("referit/referit_query_all.json", "referit"),
    ],
)
def test_root_can_be_the_data_set(tmp_path: Path, file: str, form: str) -> None:
    touch(tmp_path, file)
    assert [(one.form, one.root) for one in discover(tmp_path).sources] == [(form, tmp_path)]


def test_folder_without_records_is_a_source_if_published_and_a_gap_otherwise(tmp_path: Path) -> None:
    touch(tmp_path, "refcoco+/instances.json", "own/instances.json")
    (tmp_path / "grefcoco").mkdir()
    found = discover(tmp_path)
    assert found.sources == (
        Source(form="refer", root=tmp_path, name="refcoco+"),
        Source(form="grefcoco", root=tmp_path),
    )
    (gap,) = found.gaps
    assert "own has instances.json, but no refs(<split_by>).p" in gap


def test_empty_root(tmp_path: Path) -> None:
    (gap,) = discover(tmp_path).gaps
    assert "holds no known data set" in gap
    assert "refcoco/refs(unc).p" in gap


def test_root_one_level_too_deep_or_too_high(tmp_path: Path) -> None:
    touch(tmp_path, "refer/refcoco/refs(unc).p")
    (gap,) = discover(tmp_path / "refer" / "refcoco").gaps
    assert "name the folder above it" in gap
    (gap,) = discover(tmp_path).gaps
    assert f"{tmp_path / 'refer'} looks like such a root" in gap


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder .*absent"):
        discover(tmp_path / "absent")


def test_image_folder_applies_to_every_source(tmp_path: Path) -> None:
    touch(tmp_path, "refcoco/refs(unc).p", "anns/refcoco/val.json")
    found = discover(tmp_path, image_folder=tmp_path / "elsewhere")
    assert [one.image_folder for one in found.sources] == [tmp_path / "elsewhere"] * 2
