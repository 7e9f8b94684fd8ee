"""Writing converted data sets: records of any kind, errors, and the command."""

from __future__ import annotations

import errno
import io
import os
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import tyro
from PIL import Image
from support.converted import all_records, assert_same, converted, every_mask_form, refer
from support.parquet_layout import encoded, write_refcoco
from support.refer_layout import COCO_FOLDER, small_refcoco, square
from torch import Tensor

from cmsa_fast.cli.data_convert import ConvertOptions, format_convert, run_convert
from cmsa_fast.data import ErrorCollector, Record, RecordDataset, Source, open_split, read_records
from cmsa_fast.data.formats.convert import convert, convert_records
from cmsa_fast.data.images import ImageFile, read_image
from cmsa_fast.data.masks import parse_segmentation
from cmsa_fast.data.source import Reading


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
        data: bytes = encoded(self.number, self.height, self.width)["bytes"]
        return data

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
        assert (one.size, one.expressions, one.split) == (other.size, other.expressions, other.split)
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
    with pytest.raises(ValueError, match="converted with text='raw': ask for that instead of 'sent'"):
        open_split(converted(folder), "val")
    with pytest.raises(ValueError, match="converted with split_by='unc'"):
        open_split(converted(folder, text="raw", split_by="google"), "val")
    convert(refer(root), folder / "other.parquet")
    with pytest.raises(FileNotFoundError, match="2 Parquet files .* in it are other, raw"):
        open_split(converted(folder), "val")
    with pytest.raises(FileNotFoundError, match=r"has no cooked.parquet; data sets in it are other"):
        open_split(converted(folder, name="cooked"), "val")
    with pytest.raises(FileNotFoundError, match="there is no folder or file"):
        open_split(converted(tmp_path / "nowhere"), "val")


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
    with pytest.raises(ValueError, match=r"reference 1 has no 'ref_id' \(left out of .*set.parquet"):
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
    with pytest.raises(ValueError, match=r"must be a file name that ends in .parquet or .jsonl, not .*folder"):
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
def test_record_that_cannot_be_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
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
    assert "; 4 images are in it." in text
    assert "Left out 1 records that cannot be used:\n" in text
    assert "reference 1 has no 'ref_id'" in text
    with pytest.raises(ValueError, match="reference 1 has no 'ref_id'"):
        run_convert(replace(options, to=tmp_path / "strict.parquet", strict=True))
    some = replace(options, to=tmp_path / "some.parquet", splits=("val",), copy_images=False)
    text = format_convert(run_convert(some))
    assert f"Images stay in {tmp_path / 'refer' / COCO_FOLDER}." in text
    assert "Left out" not in text
