"""Data sets of every form are the same after their conversion."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from data.formats.test_converted import assert_same
from data.formats.test_cris import AnnsLayout
from data.formats.test_grefcoco import GrefLayout
from PIL import Image
from support.refer_layout import small_refcoco, square

from cmsa_fast.data.errors import ErrorCollector
from cmsa_fast.data.formats.converted.convert import convert
from cmsa_fast.data.source import Source, open_split, read_records


def assert_converted(source: Source, tmp_path: Path, splits: list[str]) -> None:
    """Each split is the same, also where the original is gone after its images were copied."""
    convert(source, tmp_path / "referenced")
    copied = convert(source, tmp_path / "copied", copy_images=True)
    assert copied.images_written == len(list((tmp_path / "copied" / "pictures").iterdir())) > 0
    for split in splits:
        original = open_split(source, split)
        for name in ("referenced", "copied"):
            data = open_split(Source(form="converted", root=tmp_path / name), split)
            assert_same(original, data)
    shutil.rmtree(source.root)
    for split in splits:
        assert open_split(Source(form="converted", root=tmp_path / "copied"), split)[0].image.any()


def test_grefcoco(tmp_path: Path) -> None:
    layout = GrefLayout(tmp_path / "original")
    layout.refer([1101, 1102], "both cups", "the cups — café")
    layout.refer([1101], "left cup")
    layout.refer([-1], "the horse", "a dog")
    layout.refer([1103], "plate", split="testA", image_id=9)
    layout.refer([1102], "right cup", split="testB")
    source = Source(form="grefcoco", root=layout.write())
    convert(source, tmp_path / "set")
    converted = Source(form="converted", root=tmp_path / "set")
    for one in (source, converted):  # its splits go by their exact names
        with pytest.raises(ValueError, match="split 'test' has no reference"):
            open_split(one, "test")
    assert_converted(source, tmp_path, ["train", "testA", "testB"])


def test_anns_and_masks(tmp_path: Path) -> None:
    layout = AnnsLayout(tmp_path / "original")
    layout.add("train", "left cup")
    layout.add("val", "right cup", "café on the right")
    layout.add("val", "man", image="COCO_train2014_000000000011.jpg")
    source = Source(form="anns-masks", root=layout.write())
    (layout.masks / "50.png").rename(tmp_path / "50.png")
    errors = ErrorCollector(strict=False)
    conversion = convert(source, tmp_path / "without", errors=errors)
    assert errors.count == 1
    assert "50.png" in conversion.description.errors[0]
    (tmp_path / "50.png").rename(layout.masks / "50.png")
    assert_converted(source, tmp_path, ["train", "val"])


@pytest.mark.parametrize("has_sizes", [True, False])
def test_referit(tmp_path: Path, has_sizes: bool) -> None:
    pytest.importorskip("scipy", reason="masks of ReferIt are read by scipy (referit)")
    from data.formats.test_referit import ReferitLayout

    layout = ReferitLayout(tmp_path / "original")
    if not has_sizes:
        layout.sizes = None
    source = Source(form="referit", root=layout.write())
    records = read_records(source, None, ErrorCollector(strict=True)).records
    assert all((record.size is not None) == has_sizes for record in records)
    assert_converted(source, tmp_path, ["train", "val", "trainval", "test"])


def test_parquet_without_images(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="parquet files are read by pyarrow, an extra")
    from data.formats.test_parquet import write_refcoco

    source = Source(form="parquet", root=write_refcoco(tmp_path / "refcoco"))
    assert_converted(source, tmp_path, ["train", "val", "testA", "testB"])


def test_parquet_with_images(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="parquet files are read by pyarrow, an extra")
    from data.formats.test_parquet import write_benchmark
    from support.parquet_layout import noise

    source = Source(form="parquet", root=write_benchmark(tmp_path / "original"))
    splits = list(
        {one.split: "" for one in read_records(source, None, ErrorCollector(strict=True)).records}
    )
    assert len(splits) > 1
    conversion = convert(source, tmp_path / "set")
    files = list((tmp_path / "set" / "pictures").iterdir())
    assert conversion.images_written == len(files) > 1
    for file in files:
        pixels = np.asarray(Image.open(file))
        number = int(file.stem.split("_")[-1])
        np.testing.assert_array_equal(pixels, noise(number, *pixels.shape[:2]))
    assert_converted(source, tmp_path, splits)


def test_some_splits_of_parquet_by_the_names_of_its_files(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="parquet files are read by pyarrow, an extra")
    from data.formats.test_parquet import write_refcoco

    source = Source(form="parquet", root=write_refcoco(tmp_path / "refcoco"))
    conversion = convert(source, tmp_path / "set", splits=["test", "validation"])
    assert list(conversion.description.splits) == ["testA", "val"]
    data = open_split(Source(form="converted", root=tmp_path / "set"), "testA")
    assert data.expressions() == open_split(source, "testA").expressions()
    assert "its 'test' is the published testA" in data.title
    assert data.report.published_expressions == 5_657


def test_a_damaged_reference_of_refer_is_counted_once(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path / "original")
    layout.annotations[1]["segmentation"] = [square(0, 0, 900)]
    errors = ErrorCollector(strict=False)
    convert(Source(form="refer", root=layout.write()), tmp_path / "set", errors=errors)
    assert errors.count == 1
