"""A converted data set gives the same samples as the original; damage to the file is reported."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import tyro
from data.formats.test_cris import AnnsLayout
from data.formats.test_grefcoco import GrefLayout
from PIL import Image
from pycocotools import mask as coco_mask
from support.parquet_layout import write_benchmark, write_refcoco
from support.refer_layout import COCO_FOLDER, ReferLayout, small_refcoco, square
from torch import Tensor

from cmsa_fast.cli.data_convert import ConvertOptions, format_convert, run_convert
from cmsa_fast.data import ErrorCollector, Record, RecordDataset, Source, open_split, read_records
from cmsa_fast.data.formats.convert import convert, convert_records
from cmsa_fast.data.formats.converted import METADATA_KEY, SCHEMA
from cmsa_fast.data.images import ImageFile, read_image
from cmsa_fast.data.masks import parse_segmentation
from cmsa_fast.data.source import Reading


def refer(root: Path, **options: Any) -> Source:
    return Source(form="refer", root=root, **options)


def converted(root: Path, **options: Any) -> Source:
    return Source(form="converted", root=root, **options)


def all_records(source: Source) -> Reading:
    return read_records(source, None, ErrorCollector(strict=True))


def assert_same(one: RecordDataset, other: RecordDataset) -> None:
    assert (one.title, one.report) == (other.title, other.report)
    assert one.expressions() == other.expressions()
    assert one.image_ids() == other.image_ids()
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.mask, b.mask)
        assert replace(a, image=b.image, mask=b.mask).__dict__ == b.__dict__


def assert_converted(source: Source, tmp_path: Path, splits: list[str]) -> None:
    """Compares each split, with referenced images and with embedded ones after the original is gone."""
    originals = {split: open_split(source, split) for split in splits}
    images = {split: [sample.image for sample in data] for split, data in originals.items()}
    for name in ("referenced", "embedded"):
        file = tmp_path / f"{name}.parquet"
        convert(source, file, copy_images=name == "embedded")
        for split, data in originals.items():
            assert_same(data, open_split(converted(file), split))
    shutil.rmtree(source.root)
    for split in splits:
        data = open_split(converted(tmp_path / "embedded.parquet"), split)
        assert all(torch.equal(a.image, b) for a, b in zip(data, images[split], strict=True))


def run_lengths(height: int, width: int, *, seed: int) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).random((height, width)) < 0.3
    rle: dict[str, Any] = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": [height, width], "counts": rle["counts"].decode()}


def every_mask_form(root: Path) -> ReferLayout:
    """All forms of masks, in images of odd sizes and in alternating splits."""
    layout = small_refcoco(root)
    layout.add_image(17, 19, 53)
    layout.add_image(19, 7, 5)
    plain = {"size": [7, 5], "counts": [4, 6, 25]}
    parts = [run_lengths(19, 53, seed=seed) for seed in (2, 3)]
    layout.add_reference(17, run_lengths(19, 53, seed=1), ["compressed 左のカップ"], split="testA")
    layout.add_reference(19, plain, ["plain numbers", "second"], split="testB")
    layout.add_reference(17, parts, ["a list of run lengths"], split="testA")
    outside = [square(-4, -3, 9), square(40, 12, 20)]
    layout.add_reference(17, outside, ["over the edge"], split="testB")
    layout.add_reference(
        19, [[1, 2, 3, 4], square(1, 1, 2)], ["one degenerate part"], split="testA"
    )
    layout.add_reference(19, [[1, 2, 3, 4]], ["no part is left", "really"], split="testB")
    layout.add_reference(19, [[0.0] * 6], ["a polygon without area"], split="testA")
    layout.add_reference(19, [[1, 2, 3, 4]], ["nothing to learn from", "."], split="train")
    layout.add_reference(7, square(3, 2, 10), ["the same cup"])
    layout.references[-1]["ann_id"] = layout.references[0]["ann_id"]
    return layout


def test_every_mask_form(tmp_path: Path) -> None:
    root = every_mask_form(tmp_path / "refer").write()
    conversion = convert(refer(root), tmp_path / "new" / "set.parquet")
    for training in (False, True):
        for split in (
            "train",
            "val",
            "testA",
            "testB",
            "test",
        ):  # "test" is testA and testB in REFER
            original = open_split(refer(root), split, for_training=training)
            data = open_split(converted(conversion.path), split, for_training=training)
            assert_same(original, data)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["set.parquet"]
    assert_converted(refer(root), tmp_path, ["train", "val", "testA", "testB", "test"])


def test_all_splits_in_the_order_of_the_original(tmp_path: Path) -> None:
    root = every_mask_form(tmp_path / "refer").write()
    convert(refer(root), tmp_path / "set.parquet")
    one, other = all_records(refer(root)), all_records(converted(tmp_path / "set.parquet"))
    assert one.published_expressions == other.published_expressions
    for records in (other.records, other.records[:], [other.records[i] for i in range(-13, 0)]):
        assert [
            (record.ref_id, record.split, record.size, record.expressions) for record in records
        ] == [
            (record.ref_id, record.split, record.size, record.expressions) for record in one.records
        ]
    with pytest.raises(IndexError):
        other.records[13]


def test_real_expressions(real: Path, tmp_path: Path) -> None:
    source = refer(real / "refer")
    convert(source, tmp_path / "set.parquet", copy_images=True)
    for split in ("train", "val", "testA"):
        assert_same(
            open_split(source, split), open_split(converted(tmp_path / "set.parquet"), split)
        )


# Other forms


def test_grefcoco(tmp_path: Path) -> None:
    layout = GrefLayout(tmp_path / "original")
    layout.refer([1101, 1102], "both cups", "the cups — café")
    layout.refer([1101], "left cup")
    layout.refer([-1], "the horse", "a dog")
    layout.refer([1103], "plate", split="testA", image_id=9)
    layout.refer([1102], "right cup", split="testB")
    source = Source(form="grefcoco", root=layout.write())
    convert(source, tmp_path / "set.parquet")
    for one in (source, converted(tmp_path / "set.parquet")):  # splits match by their exact names
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
    conversion = convert(source, tmp_path / "without.parquet", errors=errors)
    assert errors.count == 1
    assert "50.png" in conversion.description.errors[0]
    (tmp_path / "50.png").rename(layout.masks / "50.png")
    assert_converted(source, tmp_path, ["train", "val"])


@pytest.mark.parametrize("has_sizes", [True, False])
def test_referit(tmp_path: Path, has_sizes: bool) -> None:
    pytest.importorskip("scipy", reason="scipy reads the masks of ReferIt")
    from data.formats.test_referit import ReferitLayout

    layout = ReferitLayout(tmp_path / "original")
    if not has_sizes:
        layout.sizes = None
    source = Source(form="referit", root=layout.write())
    assert all((record.size is not None) == has_sizes for record in all_records(source).records)
    assert_converted(source, tmp_path, ["train", "val", "trainval", "test"])


def test_parquet_without_images(tmp_path: Path) -> None:
    source = Source(form="parquet", root=write_refcoco(tmp_path / "refcoco"))
    assert_converted(source, tmp_path, ["train", "val", "testA", "testB"])


def test_parquet_with_images(tmp_path: Path) -> None:
    source = Source(form="parquet", root=write_benchmark(tmp_path / "original"))
    splits = sorted({record.split for record in all_records(source).records})
    assert len(splits) > 1
    assert (
        convert(source, tmp_path / "set.parquet").embedded == 6
    )  # one for each row of the original
    assert_converted(source, tmp_path, splits)


def test_converted_file_in_the_form_parquet(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path / "refer").write()
    convert(refer(root), tmp_path / "set" / "refcoco.parquet")
    for where in (tmp_path / "set", tmp_path / "set" / "refcoco.parquet"):
        data = open_split(Source(form="parquet", root=where), "val")
        assert_same(open_split(refer(root), "val"), data)


# Images


def test_images_of_one_name_stay_apart(tmp_path: Path) -> None:
    layout = ReferLayout(tmp_path / "refer", "own", "me")
    for folder, image_id, name in (("00", 1, "a.png"), ("01", 2, "a.png"), ("02", 3, "A.png")):
        (layout.image_folder / folder).mkdir(parents=True)
        layout.add_image(image_id, 9, 11, f"{folder}/{name}")
        layout.add_reference(image_id, square(1, 1, 5), [f"in {folder}"])
    source = refer(layout.write(), name="own", split_by="me")
    assert convert(source, tmp_path / "set.parquet", copy_images=True).embedded == 3
    assert_converted(source, tmp_path, ["train"])


def test_embedded_images_are_stored_once_and_byte_for_byte(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path / "refer").write()
    convert(refer(root), tmp_path / "set.parquet", copy_images=True)
    stored = [one for one in pq.read_table(tmp_path / "set.parquet")["image"].to_pylist() if one]
    assert sorted(stored) == sorted(file.read_bytes() for file in (root / COCO_FOLDER).iterdir())


def test_image_that_fits_only_upright(tmp_path: Path) -> None:
    layout = ReferLayout(tmp_path / "refer")
    layout.add_image(7, 31, 13)
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 31, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(layout.image_folder / layout.images[0]["file_name"], "PNG", exif=exif)
    layout.add_reference(7, square(1, 15, 9), ["low"])
    assert_converted(refer(layout.write()), tmp_path, ["train"])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_size_that_only_the_image_states(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (31, 13), "teal").save(tmp_path / "turned", kind, exif=exif)
    image = ImageFile((tmp_path,), "turned")
    masks = Checkerboard(), parse_segmentation([square(9, 2, 8)])
    records = [record(place, (one,), image=image, size=None) for place, one in enumerate(masks)]
    convert_records(Reading(records, "one"), tmp_path / "set.parquet", origin={})
    original = RecordDataset(records, title="one train", for_training=False)
    assert_same(original, open_split(converted(tmp_path / "set.parquet"), "train"))


def test_file_moved_together_with_its_images(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path / "tree" / "refer").write()
    convert(refer(root), tmp_path / "tree" / "converted" / "set.parquet")
    before = open_split(converted(tmp_path / "tree" / "converted"), "train")[0].image
    (tmp_path / "tree").rename(tmp_path / "moved")
    after = open_split(converted(tmp_path / "moved" / "converted"), "train")[0].image
    assert torch.equal(before, after)


def test_missing_images(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path / "refer").write()
    file = convert(refer(root), tmp_path / "set.parquet").path
    photos = (root / COCO_FOLDER).rename(tmp_path / "photos")
    with pytest.raises(
        FileNotFoundError, match=f"{COCO_FOLDER}: name their folder as image_folder"
    ):
        open_split(converted(file), "train")
    data = open_split(converted(file, image_folder=photos), "train")
    assert data[0].image.shape == (3, 23, 37)
    with pytest.raises(FileNotFoundError, match="there is no folder nowhere"):
        open_split(converted(file, image_folder=Path("nowhere")), "train")
    (photos / "COCO_train2014_000000000007.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="COCO_train2014_000000000007"):
        pickle.loads(pickle.dumps(data))[0]  # the copy has an empty cache


# Records of any kind


@dataclass(frozen=True)
class EmbeddedNoise:
    """An image inside another file."""

    number: int
    height: int
    width: int
    file_name: str

    @property
    def name(self) -> str:
        return f"noise {self.number}"

    def read_bytes(self) -> bytes:
        shape = (self.height, self.width, 3)
        pixels = np.random.default_rng(self.number).integers(0, 256, shape, np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()

    def read(self, *, apply_orientation: bool) -> Tensor:
        return read_image(io.BytesIO(self.read_bytes()), apply_orientation=apply_orientation)


@dataclass(frozen=True, eq=False)
class Checkerboard:
    """Every other pixel; like a mask in a file, its size is unknown before it is decoded."""

    is_empty: bool = False
    size: tuple[int, int] | None = None
    dropped: int = 0

    def decode(self, height: int, width: int) -> Tensor:
        return (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0


class InterruptedMask(Checkerboard):
    """Ctrl-C while a mask is decoded."""

    def decode(self, height: int, width: int) -> Tensor:
        raise KeyboardInterrupt


def record(place: int, objects: tuple[Any, ...], **changes: Any) -> Record:
    image = EmbeddedNoise(place % 2, 21, 17 + place % 2, f"{place % 2}.png")
    expressions = ((10 * place, f"expression {place}"), (10 * place + 1, "twice"), (1, "twice"))
    size = (21, 17 + place % 2)
    whole = Record(image, size, objects, expressions, place % 2, place, "train", f"record {place}")
    return replace(whole, **changes)


def hand_made() -> Reading:
    first = parse_segmentation([square(2, 2, 5)])
    second = parse_segmentation([square(5, 4, 9), [1, 2]])
    third = parse_segmentation([square(5, 4, 9), square(1, 1, 2), [3, 4]])
    lost = parse_segmentation([[1, 2], [3, 4, 5, 6]])
    records = [
        record(0, ()),
        record(1, (first, second)),
        record(2, (first, lost, Checkerboard())),
        record(3, (Checkerboard(),), size=None),
        record(4, (lost, third), size=None),
        record(5, (lost,), size=None),
        record(6, (), size=None, ref_id=-1, image_id=2**62),
        record(7, (first, second), expressions=((1, "a\0b"), (2, ""), (3, "é́ 🐈"))),
        record(8, (first,), expressions=()),
        record(10, (Checkerboard(),), split="Train"),
        record(11, (Checkerboard(),), split="../tr aïn"),
        record(12, (), split=""),
    ]
    return Reading(records, "by hand", {"train": 21})


def test_several_objects_none_and_lost_masks(tmp_path: Path) -> None:
    reading, file = hand_made(), tmp_path / "set.parquet"
    assert convert_records(reading, file, origin={}).embedded == 2
    again = all_records(converted(file))
    for one, other in zip(reading.records, again.records, strict=True):
        assert (one.size, one.expressions, one.split) == (
            other.size,
            other.expressions,
            other.split,
        )
        assert [mask.is_empty for mask in one.objects] == [mask.is_empty for mask in other.objects]
        assert (one.names_nothing, one.has_lost_mask) == (other.names_nothing, other.has_lost_mask)
        assert other.mask_size in (one.mask_size, (21, 17 + one.ref_id % 2))
    for training in (False, True):
        original = RecordDataset(
            [one for one in reading.records if one.split == "train"],
            title="by hand train",
            for_training=training,
            published_expressions=21,
        )
        data = open_split(converted(file), "train", for_training=training)
        assert_same(original, data)
        assert data.report.expressions_naming_nothing == 6
        assert data.report.degenerate_parts == 4
    assert len(open_split(converted(file), "../tr aïn")) == 3


def test_converted_again_with_its_images(tmp_path: Path) -> None:
    root = every_mask_form(tmp_path / "refer").write()
    convert(refer(root), tmp_path / "one.parquet")
    convert(converted(tmp_path / "one.parquet"), tmp_path / "two.parquet", copy_images=True)
    two = convert(converted(tmp_path / "two.parquet"), tmp_path / "three.parquet")
    assert two.description.origin["form"] == "refer"
    data = open_split(converted(tmp_path / "three.parquet"), "test")
    assert_same(open_split(refer(root), "test"), data)


def test_some_splits(tmp_path: Path) -> None:
    root, file = every_mask_form(tmp_path / "refer").write(), tmp_path / "set.parquet"
    convert(refer(root), file, splits=["val", "test"])
    for split in ("val", "testA", "test"):
        assert_same(open_split(refer(root), split), open_split(converted(file), split))
    with pytest.raises(ValueError, match=r"split 'train' .* has val \(1 references\), testA"):
        open_split(converted(file), "train")
    with pytest.raises(ValueError, match="'test' and 'testA' share the records of 'testA'"):
        convert(refer(root), tmp_path / "other.parquet", splits=["test", "testA"])
    assert not (tmp_path / "other.parquet").exists()


def test_splits_by_the_names_of_parquet_files(tmp_path: Path) -> None:
    source = Source(form="parquet", root=write_refcoco(tmp_path / "refcoco"))
    conversion = convert(source, tmp_path / "set.parquet", splits=["test", "validation"])
    assert list(conversion.splits) == ["testA", "val"]
    data = open_split(converted(tmp_path / "set.parquet"), "testA")
    assert data.expressions() == open_split(source, "testA").expressions()
    assert "its 'test' is the published testA" in data.title
    assert data.report.published_expressions == 5_657


def test_pickled_data_set_reads_the_same(tmp_path: Path) -> None:
    convert(refer(every_mask_form(tmp_path / "refer").write()), tmp_path / "set.parquet")
    data = open_split(converted(tmp_path / "set.parquet"), "train")
    assert_same(data, pickle.loads(pickle.dumps(data)))


def test_text_version_and_author_are_those_of_the_conversion(tmp_path: Path) -> None:
    root, folder = small_refcoco(tmp_path / "refer").write(), tmp_path / "sets"
    convert(refer(root, text="raw", split_by="unc"), folder / "raw.parquet")
    raw = open_split(converted(folder, name="raw", text="raw", split_by="unc"), "val")
    assert raw.expressions() == ["DOG", "BROWN DOG"]
    with pytest.raises(
        ValueError, match="converted with text='raw': ask for that instead of 'sent'"
    ):
        open_split(converted(folder), "val")
    with pytest.raises(ValueError, match="converted with split_by='unc'"):
        open_split(converted(folder, text="raw", split_by="google"), "val")
    convert(refer(root), folder / "other.parquet")
    with pytest.raises(FileNotFoundError, match="2 Parquet files .* in it are other, raw"):
        open_split(converted(folder), "val")
    with pytest.raises(
        FileNotFoundError, match=r"has no cooked.parquet; data sets in it are other"
    ):
        open_split(converted(folder, name="cooked"), "val")
    with pytest.raises(FileNotFoundError, match="there is no folder or file"):
        open_split(converted(tmp_path / "nowhere"), "val")


# Errors while converting


def test_unusable_records_are_left_out_and_reported_again(tmp_path: Path) -> None:
    layout = every_mask_form(tmp_path / "refer")
    del layout.references[1]["ref_id"]
    layout.annotations[3]["segmentation"] = [square(0, 0, 5000)]  # cannot be decoded
    (layout.image_folder / layout.images[3]["file_name"]).unlink()
    root, file = layout.write(), tmp_path / "set.parquet"
    with pytest.raises(ValueError, match="reference 1 has no 'ref_id'"):
        convert(refer(root), file)
    assert not file.exists()
    errors = ErrorCollector(strict=False)
    conversion = convert(refer(root), file, copy_images=True, errors=errors)
    assert list(conversion.description.errors) == errors.messages
    text = "\n".join(errors.messages)
    assert text.count("there is no image COCO_train2014_000000000017.jpg") == 3
    for part in ("reference 1 has no 'ref_id'", "a polygon of the mask spans"):
        assert text.count(part) == 1, part
    assert errors.count == 5
    with pytest.raises(
        ValueError, match=r"reference 1 has no 'ref_id' \(left out of .*set.parquet"
    ):
        open_split(converted(file), "train")
    again = ErrorCollector(strict=False)
    data = open_split(converted(file), "train", errors=again)
    assert data.report.unusable_records == again.count == 5
    records = read_records(converted(file), None, ErrorCollector(strict=False)).records
    assert len(records) == len(layout.references) - 5
    assert convert(converted(file), tmp_path / "2.parquet", errors=again).description.errors


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path / "refer").write()
    (tmp_path / "thesis.parquet").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis.parquet exists and is never overwritten"):
        convert(refer(root), tmp_path / "thesis.parquet")
    assert (tmp_path / "thesis.parquet").read_text() == "years of work"
    with pytest.raises(
        ValueError, match=r"must be a file name that ends in .parquet, not .*folder"
    ):
        convert(refer(root), tmp_path / "folder")


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    records = [*hand_made().records, record(20, (InterruptedMask(),))]
    with pytest.raises(KeyboardInterrupt):
        convert_records(Reading(records, "title"), tmp_path / "set.parquet", origin={})
    assert not list(tmp_path.iterdir())


def test_full_disk_is_no_damaged_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    errors = ErrorCollector(strict=False)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        convert_records(hand_made(), tmp_path / "set.parquet", origin={}, errors=errors)
    assert errors.count == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 2**70}, "record 0: ref_id 0: Python int too large"),
        ({"ref_id": -(2**64)}, "record 0: ref_id -18446744073709551616: Python int too large"),
        ({"expressions": ((1, "half \ud800 of a pair"),)}, "surrogates not allowed"),
        ({"split": "\udc80"}, "surrogates not allowed"),
    ],
)
def test_record_that_cannot_be_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    reading = Reading([record(0, (), **changes)], "title")
    errors = ErrorCollector(strict=False)
    with pytest.raises(ValueError, match="title has no record that can be converted"):
        convert_records(reading, tmp_path / "set.parquet", origin={}, errors=errors)
    assert message in errors.messages[0]
    assert not list(tmp_path.iterdir())


def test_image_without_file_or_bytes(tmp_path: Path) -> None:
    class Drawn:
        name = "a drawing"

        def read(self, *, apply_orientation: bool) -> Tensor:
            return torch.zeros(3, 21, 17, dtype=torch.uint8)

    reading = Reading([record(0, (), image=Drawn())], "title")
    with pytest.raises(TypeError, match="a drawing is an image of type Drawn, which has neither"):
        convert_records(reading, tmp_path / "set.parquet", origin={})


# Damaged files


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A converted data set with every form of mask."""
    root = every_mask_form(tmp_path / "refer").write()
    return convert(refer(root), tmp_path / "set.parquet").path


def test_folder_of_the_former_format(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    for source in (converted(tmp_path), converted(tmp_path.parent, name=tmp_path.name)):
        with pytest.raises(ValueError, match="no longer read: convert the original again"):
            open_split(source, "val")


def test_truncated_file(small: Path) -> None:
    content = small.read_bytes()
    for length in (0, 1, 8, 100, len(content) // 2, len(content) - 1):
        small.write_bytes(content[:length])
        with pytest.raises(
            ValueError, match=r"set\.parquet is no Parquet file, is damaged, or trunc"
        ):
            open_split(converted(small), "train")


def test_changed_byte_gives_the_same_records_or_an_error(small: Path) -> None:
    content = small.read_bytes()
    expected = [
        replace(one, image=None, objects=()) for one in all_records(converted(small)).records
    ]  # type: ignore[arg-type]
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(content), 100).tolist():
        small.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            records = list(all_records(converted(small)).records)
        except (ValueError, FileNotFoundError) as error:
            assert "parquet" in str(error) or "image_folder" in str(error)  # noqa: PT017
            refused += 1
        else:
            if small.read_bytes()[-len(content) // 3 :] == content[-len(content) // 3 :]:
                assert [replace(one, image=None, objects=()) for one in records] == expected  # type: ignore[arg-type]
    assert refused > 50


def edit(
    file: Path, change: Callable[[list[dict[str, Any]]], object], schema: pa.Schema = SCHEMA
) -> None:
    """Rewrites the rows of a converted file."""
    metadata = pq.ParquetFile(file).metadata.metadata[METADATA_KEY]
    rows = pq.read_table(file).to_pylist()
    change(rows)
    with pq.ParquetWriter(file, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
        writer.add_key_value_metadata({METADATA_KEY: metadata})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "0 and 37 are not a height and a width"),
        ({"width": None}, "23 and None are not a height and a width"),
        ({"file_name": "../secret.jpg"}, "an image is named '../secret.jpg'"),
        ({"folder": 7}, "its image .* is neither in a folder nor embedded"),
        ({"folder": None, "image_row": 10**9}, "its image .* is neither in a folder nor embedded"),
    ],
)
def test_impossible_values(small: Path, changes: dict[str, Any], message: str) -> None:
    edit(small, lambda rows: rows[2].update(changes))
    with pytest.raises(ValueError, match=rf"set\.parquet: row 2: {message}"):
        list(all_records(converted(small)).records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 24}, "mask of ref_id 100 .* is for 24 x 37"),
        ({"counts": b"0"}, r"set\.parquet: row 0: the run lengths add up"),
        ({"counts": b"\xff\xff"}, r"set\.parquet: row 0: the counts of run lengths are not"),
        ({"height": None, "width": None}, r"set\.parquet: row 0: the size of run lengths must be"),
    ],
)
def test_damaged_mask(small: Path, changes: dict[str, Any], message: str) -> None:
    edit(small, lambda rows: rows[0]["masks"][0].update(changes))
    data = open_split(converted(small), "train")
    with pytest.raises(ValueError, match=message):
        data[0]
    assert data[2].mask.any()


def test_embedded_image_in_a_row_without_one(small: Path) -> None:
    edit(small, lambda rows: rows[0].update(folder=None, image_row=0))
    with pytest.raises(ValueError, match="the column 'image' holds no image there"):
        open_split(converted(small), "train")[0]


def test_other_columns(small: Path) -> None:
    edit(small, lambda rows: None, SCHEMA.remove(0))
    with pytest.raises(ValueError, match="no converted data set: it was not written by `cmsa-fast"):
        open_split(converted(small), "train")
    pq.write_table(pa.table({"a": [1]}), small)
    with pytest.raises(ValueError, match="no converted data set: it was not written by `cmsa-fast"):
        open_split(converted(small), "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "is of version 3 and this cmsa_fast reads version 2: convert"),
        ({"origin": []}, "metadata that cannot be read"),
        ({"published_expressions": {"val": "many"}}, "metadata that cannot be read"),
        ({"image_folders": [{"absolute": 1}]}, "metadata that cannot be read"),
        ({"errors": None}, "metadata that cannot be read"),
        (None, "metadata that cannot be read"),
    ],
)
def test_damaged_metadata(small: Path, changes: dict[str, Any] | None, message: str) -> None:
    table = pq.read_table(small)
    text = pq.ParquetFile(small).metadata.metadata[METADATA_KEY]
    changed = text[:9] if changes is None else json.dumps({**json.loads(text), **changes})
    with pq.ParquetWriter(small, SCHEMA) as writer:
        writer.write_table(table.cast(SCHEMA))
        writer.add_key_value_metadata({METADATA_KEY: changed})
    with pytest.raises(ValueError, match=message):
        open_split(converted(small), "val")


# The command


def test_command(tmp_path: Path) -> None:
    layout = every_mask_form(tmp_path / "refer")
    del layout.references[1]["ref_id"]
    to = tmp_path / "set.parquet"
    arguments = ["--root", str(layout.write()), "--to", str(to), "--copy-images"]
    settings = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    options = tyro.cli(ConvertOptions, args=arguments, config=settings)
    text = format_convert(run_convert(options))
    assert f"refcoco (unc) is now in {to}\n" in text
    assert "  train        7 expressions in 4 records, 4 masks, 2 images" in text
    assert " with 4 images." in text
    assert "Left out 1 records that cannot be used:\n" in text
    assert "reference 1 has no 'ref_id'" in text
    with pytest.raises(ValueError, match="reference 1 has no 'ref_id'"):
        run_convert(replace(options, to=tmp_path / "strict.parquet", strict=True))
    some = replace(options, to=tmp_path / "some.parquet", splits=("val",), copy_images=False)
    text = format_convert(run_convert(some))
    assert f"Images stay in {tmp_path / 'refer' / COCO_FOLDER}." in text
    assert "Left out" not in text
