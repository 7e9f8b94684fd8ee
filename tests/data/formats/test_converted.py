"""A converted data set is the original, sample for sample, and damage to it is told."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.numpy import load, save
from support.refer_layout import COCO_FOLDER, ReferLayout, small_refcoco, square
from torch import Tensor

from cmsa_fast.cli.data_convert import ConvertOptions, format_convert, run_convert
from cmsa_fast.data.dataset import RecordDataset
from cmsa_fast.data.errors import ErrorCollector
from cmsa_fast.data.formats.converted.convert import convert, convert_records
from cmsa_fast.data.images import ImageFile, read_image
from cmsa_fast.data.masks import parse_segmentation
from cmsa_fast.data.source import Reading, Source, open_split, read_records
from cmsa_fast.data.types import Record


def refer(root: Path, **choices: Any) -> Source:
    return Source(form="refer", root=root, **choices)


def converted(root: Path, **choices: Any) -> Source:
    return Source(form="converted", root=root, **choices)


def assert_same(one: RecordDataset, other: RecordDataset) -> None:
    assert (one.title, one.report) == (other.title, other.report)
    assert one.expressions() == other.expressions()
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.mask, b.mask)
        assert (a.expression, a.image_id, a.ref_id, a.sent_id) == (
            b.expression,
            b.image_id,
            b.ref_id,
            b.sent_id,
        )


def run_lengths(height: int, width: int, *, seed: int) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).random((height, width)) < 0.3
    return coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))


def every_mask_form(root: Path) -> ReferLayout:
    """All ways to write a mask, in images of odd sizes, in splits that take turns."""
    layout = small_refcoco(root)
    layout.add_image(17, 19, 53)
    layout.add_image(19, 7, 5)
    compressed = run_lengths(19, 53, seed=1)
    text = {"size": [19, 53], "counts": compressed["counts"].decode()}
    plain = {"size": [7, 5], "counts": [4, 6, 25]}
    parts = [
        {"size": [19, 53], "counts": run_lengths(19, 53, seed=n)["counts"].decode()} for n in (2, 3)
    ]
    layout.add_reference(17, text, ["compressed 左のカップ"], split="testA")
    layout.add_reference(19, plain, ["plain numbers", "second"], split="testB")
    layout.add_reference(17, parts, ["a list of run lengths"], split="testA")
    layout.add_reference(
        17, [square(-4, -3, 9), square(40, 12, 20)], ["over the edge"], split="testB"
    )
    layout.add_reference(
        19, [[1, 2, 3, 4], square(1, 1, 2)], ["one part is degenerate"], split="testA"
    )
    layout.add_reference(19, [[1, 2, 3, 4]], ["no part is left", "really"], split="testB")
    layout.add_reference(19, [[0.0] * 6], ["a polygon without area"], split="testA")
    layout.add_reference(19, [[1, 2, 3, 4]], ["nothing to learn from", "."], split="train")
    shared = layout.references[0]["ann_id"]
    layout.add_reference(7, square(3, 2, 10), ["the same cup"], ann_id=9999)
    layout.references[-1]["ann_id"] = shared
    return layout


@pytest.mark.parametrize("copy_images", [False, True])
def test_refer_in_every_mask_form(tmp_path: Path, copy_images: bool) -> None:
    root = every_mask_form(tmp_path / "refer").write()
    conversion = convert(refer(root), tmp_path / "new" / "set", copy_images=copy_images)
    assert conversion.folder == tmp_path / "new" / "set"
    assert conversion.images_written == (5 if copy_images else 0)
    (root / "refcoco" / "refs(unc).p").rename(tmp_path / "refs")
    for training in (False, True):
        for split in (
            "train",
            "val",
            "testA",
            "testB",
            "test",
        ):  # REFER's "test" is both of its parts
            (tmp_path / "refs").rename(root / "refcoco" / "refs(unc).p")
            original = open_split(refer(root), split, for_training=training)
            (root / "refcoco" / "refs(unc).p").rename(tmp_path / "refs")
            assert_same(
                original, open_split(converted(conversion.folder), split, for_training=training)
            )
    assert not list((tmp_path / "new").glob(".*"))


def test_all_splits_in_the_order_of_the_original(tmp_path: Path) -> None:
    root = every_mask_form(tmp_path / "refer").write()
    convert(refer(root), tmp_path / "set")
    readings = [
        read_records(source, None, ErrorCollector(strict=True))
        for source in (refer(root), converted(tmp_path / "set"))
    ]
    ids = [[(one.ref_id, one.split, one.size) for one in reading.records] for reading in readings]
    assert ids[0] == ids[1]
    assert readings[0].published_expressions == readings[1].published_expressions


@pytest.mark.parametrize("copy_images", [False, True])
def test_real_expressions(real: Path, tmp_path: Path, copy_images: bool) -> None:
    source = refer(real / "refer")
    convert(source, tmp_path / "set", copy_images=copy_images)
    for split in ("train", "val", "testA"):
        assert_same(open_split(source, split), open_split(converted(tmp_path / "set"), split))


def test_copied_images_are_the_same_bytes(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path / "refer").write()
    convert(refer(root), tmp_path / "set", copy_images=True)
    for file in (root / COCO_FOLDER).iterdir():
        assert (tmp_path / "set" / "pictures" / file.name).read_bytes() == file.read_bytes()
    shutil.rmtree(root)
    (tmp_path / "set").rename(tmp_path / "elsewhere")
    assert len(open_split(converted(tmp_path / "elsewhere"), "val")[0].image) == 3


def test_images_of_one_name_stay_apart(tmp_path: Path) -> None:
    layout = ReferLayout(tmp_path / "refer", "own", "me")
    for folder, image_id, name in (("00", 1, "a.png"), ("01", 2, "a.png"), ("02", 3, "A.png")):
        (layout.image_folder / folder).mkdir(parents=True)
        layout.add_image(image_id, 9, 11, f"{folder}/{name}")
        layout.add_reference(image_id, square(1, 1, 5), [f"in {folder}"])
    source = refer(layout.write(), name="own", split_by="me")
    assert convert(source, tmp_path / "set", copy_images=True).images_written == 3
    original = open_split(source, "train")
    images = [sample.image for sample in original]
    shutil.rmtree(layout.root)
    for image, sample in zip(images, open_split(converted(tmp_path / "set"), "train"), strict=True):
        assert torch.equal(image, sample.image)


def test_a_image_that_fits_only_upright(tmp_path: Path) -> None:
    layout = ReferLayout(tmp_path / "refer")
    layout.add_image(7, 31, 13)
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 31, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(layout.image_folder / layout.images[0]["file_name"], "PNG", exif=exif)
    layout.add_reference(7, square(1, 15, 9), ["low"])
    root = layout.write()
    convert(refer(root), tmp_path / "set")
    assert_same(open_split(refer(root), "train"), open_split(converted(tmp_path / "set"), "train"))


@dataclass(frozen=True)
class EmbeddedNoise:
    """An image inside something else."""

    number: int
    height: int
    width: int
    file_name: str

    @property
    def name(self) -> str:
        return f"noise {self.number}"

    def read_bytes(self) -> bytes:
        pixels = np.random.default_rng(self.number).integers(
            0, 256, (self.height, self.width, 3), np.uint8
        )
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()

    def read(self, *, apply_orientation: bool) -> Tensor:
        return read_image(io.BytesIO(self.read_bytes()), apply_orientation=apply_orientation)


@dataclass(frozen=True, eq=False)
class CheckedMask:
    """Every other pixel; like a mask in a file it knows no size before it is drawn."""

    is_empty: bool = False
    size: tuple[int, int] | None = None
    dropped: int = 0

    def decode(self, height: int, width: int) -> Tensor:
        return (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0


class InterruptedMask(CheckedMask):
    """Somebody presses Ctrl-C."""

    def decode(self, height: int, width: int) -> Tensor:
        raise KeyboardInterrupt


def record(place: int, objects: tuple[Any, ...], **changes: Any) -> Record:
    image = EmbeddedNoise(place % 2, 21, 17 + place % 2, f"{place % 2}.png")
    return replace(
        Record(
            image=image,
            size=(21, 17 + place % 2),
            objects=objects,
            expressions=(
                (10 * place, f"expression {place}"),
                (10 * place + 1, "twice"),
                (1, "twice"),
            ),
            image_id=place % 2,
            ref_id=place,
            split="train",
            where=f"record {place}",
        ),
        **changes,
    )


def hand_made() -> Reading:
    first = parse_segmentation([square(2, 2, 5)])
    second = parse_segmentation([square(5, 4, 9), [1, 2]])
    third = parse_segmentation([square(5, 4, 9), square(1, 1, 2), [3, 4]])
    lost = parse_segmentation([[1, 2], [3, 4, 5, 6]])
    records = [
        record(0, ()),
        record(1, (first, second)),
        record(2, (first, lost, CheckedMask())),
        record(3, (CheckedMask(),), size=None),
        record(4, (lost, third), size=None),
        record(5, (lost,), size=None),
        record(6, (), size=None, ref_id=-1, image_id=2**62),
        record(
            7, (first, second), expressions=((1, "half \ud800 of a pair"), (2, ""), (3, "é́ 🐈"))
        ),
        record(8, (first,), expressions=()),
        record(10, (CheckedMask(),), split="Train"),
        record(11, (CheckedMask(),), split="../tr aïn"),
        record(12, (), split=""),
    ]
    return Reading(records, "by hand", {"train": 21})


def test_several_objects_none_and_lost_masks(tmp_path: Path) -> None:
    reading = hand_made()
    conversion = convert_records(reading, tmp_path / "set", origin={})
    assert conversion.images_written == 2
    assert conversion.image_bytes == sum(
        file.stat().st_size for file in (tmp_path / "set" / "pictures").iterdir()
    )
    again = read_records(converted(tmp_path / "set"), None, ErrorCollector(strict=True))
    for one, other in zip(reading.records, again.records, strict=True):
        assert (one.size, one.expressions, one.split) == (
            other.size,
            other.expressions,
            other.split,
        )
        assert [mask.dropped for mask in one.objects] == [mask.dropped for mask in other.objects]
        assert [mask.is_empty for mask in one.objects] == [mask.is_empty for mask in other.objects]
        assert one.names_nothing == other.names_nothing
        assert one.has_lost_mask == other.has_lost_mask
        assert other.mask_size in (one.mask_size, (21, 17 + one.ref_id % 2))
    for training in (False, True):
        original = RecordDataset(
            [one for one in reading.records if one.split == "train"],
            title="by hand train",
            for_training=training,
            published_expressions=21,
        )
        data = open_split(converted(tmp_path / "set"), "train", for_training=training)
        assert_same(original, data)
        assert data.report.expressions_naming_nothing == 6
    assert len(open_split(converted(tmp_path / "set"), "../tr aïn")) == 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_size_that_only_the_image_says(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (31, 13), "teal").save(tmp_path / "turned", kind, exif=exif)
    image = ImageFile((tmp_path,), "turned")
    masks = CheckedMask(), parse_segmentation([square(9, 2, 8)])
    records = [record(place, (one,), image=image, size=None) for place, one in enumerate(masks)]
    convert_records(Reading(records, "one"), tmp_path / "set", origin={})
    original = RecordDataset(records, title="one train", for_training=False)
    assert_same(original, open_split(converted(tmp_path / "set"), "train"))


def test_objects_stay_shared(tmp_path: Path) -> None:
    root = every_mask_form(tmp_path / "refer").write()
    convert(refer(root), tmp_path / "set")
    data = open_split(converted(tmp_path / "set"), "train")
    assert data.records[0].objects[0] is data.records[-1].objects[0]


def test_converted_again_with_its_images(tmp_path: Path) -> None:
    root = every_mask_form(tmp_path / "refer").write()
    convert(refer(root), tmp_path / "one")
    convert(converted(tmp_path / "one"), tmp_path / "two", copy_images=True)
    assert_same(open_split(refer(root), "test"), open_split(converted(tmp_path / "two"), "test"))
    origin = json.loads((tmp_path / "two" / "dataset.json").read_text())["origin"]
    assert origin["form"] == "refer"


def test_some_splits(tmp_path: Path) -> None:
    root = every_mask_form(tmp_path / "refer").write()
    convert(refer(root), tmp_path / "set", splits=["val", "test"])
    for split in ("val", "testA", "test"):
        assert_same(open_split(refer(root), split), open_split(converted(tmp_path / "set"), split))
    with pytest.raises(ValueError, match=r"split 'train' .* has val \(1 references\), testA"):
        open_split(converted(tmp_path / "set"), "train")
    with pytest.raises(ValueError, match="'test' and 'testA' share the records of 'testA'"):
        convert(refer(root), tmp_path / "other", splits=["test", "testA"])
    assert not (tmp_path / "other").exists()


def test_a_pickled_data_set_reads_the_same(tmp_path: Path) -> None:
    root = every_mask_form(tmp_path / "refer").write()
    convert(refer(root), tmp_path / "set")
    data = open_split(converted(tmp_path / "set"), "train")
    assert_same(data, pickle.loads(pickle.dumps(data)))


def test_damaged_records_are_left_out_and_told(tmp_path: Path) -> None:
    layout = every_mask_form(tmp_path / "refer")
    del layout.references[1]["ref_id"]
    layout.annotations[3]["segmentation"] = [square(0, 0, 5000)]  # cannot be drawn
    (layout.image_folder / layout.images[3]["file_name"]).unlink()
    root = layout.write()
    with pytest.raises(ValueError, match="reference 1 has no 'ref_id'"):
        convert(refer(root), tmp_path / "set")
    errors = ErrorCollector(strict=False)
    conversion = convert(refer(root), tmp_path / "set", copy_images=True, errors=errors)
    assert list(conversion.description.errors) == errors.messages
    told = "\n".join(errors.messages)
    assert told.count("there is no image COCO_train2014_000000000017.jpg") == 3
    for part in ("reference 1 has no 'ref_id'", "a polygon of the mask spans"):
        assert told.count(part) == 1, part
    assert errors.count == 5
    again = read_records(converted(tmp_path / "set"), None, ErrorCollector(strict=True))
    assert len(again.records) == len(layout.references) - 5


def test_the_log_says_what_the_conversion_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = small_refcoco(tmp_path / "refer")
    del layout.references[1]["ref_id"]
    convert(refer(layout.write()), tmp_path / "set", errors=ErrorCollector(strict=False))
    convert(converted(tmp_path / "set"), tmp_path / "again")
    caplog.clear()
    open_split(converted(tmp_path / "again"), "val")
    assert "lacks 1 records" in caplog.text


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path / "refer").write()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="full has something in it"):
        convert(refer(root), tmp_path / "full")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(NotADirectoryError, match="file is a file"):
        convert(refer(root), tmp_path / "file")
    assert (tmp_path / "full" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    convert(refer(root), tmp_path / "empty")
    assert len(open_split(converted(tmp_path / "empty"), "train")) == 5


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    records = [*hand_made().records, record(20, (InterruptedMask(),))]
    with pytest.raises(KeyboardInterrupt):
        convert_records(Reading(records, "title"), tmp_path / "set", origin={})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_no_damaged_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    errors = ErrorCollector(strict=False)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        convert_records(hand_made(), tmp_path / "set", origin={}, errors=errors)
    assert errors.count == 0
    assert not list(tmp_path.iterdir())


def test_no_record_can_be_used(tmp_path: Path) -> None:
    reading = Reading([record(0, (), image_id=2**70)], "title")
    errors = ErrorCollector(strict=False)
    with pytest.raises(ValueError, match="title has no record that can be converted"):
        convert_records(reading, tmp_path / "set", origin={}, errors=errors)
    assert errors.messages == [
        f"record 0: a number of ref_id 0 is {2**70}, which is none of 64 bits"
    ]
    assert not list(tmp_path.iterdir())


def test_a_image_without_file_or_bytes(tmp_path: Path) -> None:
    class Drawn:
        name = "a drawing"

        def read(self, *, apply_orientation: bool) -> Tensor:
            return torch.zeros(3, 21, 17, dtype=torch.uint8)

    reading = Reading([record(0, (), image=Drawn())], "title")
    with pytest.raises(TypeError, match="a drawing is an image of type Drawn, which has neither"):
        convert_records(reading, tmp_path / "set", origin={})


# Where the images are


def test_a_tree_that_was_moved(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path / "tree" / "refer").write()
    convert(refer(root), tmp_path / "tree" / "converted" / "set")
    before = open_split(converted(tmp_path / "tree" / "converted" / "set"), "train")[0].image
    (tmp_path / "tree").rename(tmp_path / "moved")
    after = open_split(converted(tmp_path / "moved" / "converted" / "set"), "train")[0].image
    assert torch.equal(before, after)


def test_images_that_are_gone(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path / "refer").write()
    convert(refer(root), tmp_path / "set")
    (root / COCO_FOLDER).rename(tmp_path / "pictures")
    with pytest.raises(
        FileNotFoundError, match=f"{COCO_FOLDER}: name their folder by image_folder"
    ):
        open_split(converted(tmp_path / "set"), "train")
    data = open_split(converted(tmp_path / "set", image_folder=tmp_path / "pictures"), "train")
    assert data[0].image.shape == (3, 23, 37)
    with pytest.raises(FileNotFoundError, match="there is no folder nowhere"):
        open_split(converted(tmp_path / "set", image_folder=Path("nowhere")), "train")
    (tmp_path / "pictures" / "COCO_train2014_000000000007.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="COCO_train2014_000000000007"):
        pickle.loads(pickle.dumps(data))[0]  # a copy has nothing in its cache


# What it is asked for


def test_a_choice_made_at_the_conversion(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path / "refer").write()
    convert(refer(root, text="raw", split_by="unc"), tmp_path / "sets" / "raw")
    raw = open_split(converted(tmp_path / "sets", name="raw", text="raw", split_by="unc"), "val")
    assert raw.expressions() == ["DOG", "BROWN DOG"]
    with pytest.raises(ValueError, match="converted with text='raw' and has nothing else"):
        open_split(converted(tmp_path / "sets" / "raw"), "val")
    with pytest.raises(ValueError, match="converted with split_by='unc'"):
        open_split(converted(tmp_path / "sets" / "raw", text="raw", split_by="google"), "val")
    with pytest.raises(FileNotFoundError, match=r"has no dataset.json; folders with one are raw"):
        open_split(converted(tmp_path / "sets"), "val")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_split(converted(tmp_path / "nowhere"), "val")


# Damage


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A converted data set of every mask form."""
    root = every_mask_form(tmp_path / "refer").write()
    return convert(refer(root), tmp_path / "set").folder


def test_a_file_cut_short(small: Path) -> None:
    file = small / "train.safetensors"
    content = file.read_bytes()
    for length in (0, 1, 8, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(
            ValueError, match=r"train\.safetensors is not the file that was written"
        ):
            open_split(converted(small), "train")
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no file .*train\.safetensors, which dataset.json"
    ):
        open_split(converted(small), "train")
    assert len(open_split(converted(small), "val")) == 2


def test_a_changed_byte(small: Path) -> None:
    file = small / "train.safetensors"
    content = file.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 50).tolist():
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(ValueError, match="is not the file that was written"):
            open_split(converted(small), "train")


def edit(folder: Path, change: Any, split: str = "train") -> None:
    """Changes a split's arrays and the digest with them."""
    file = folder / f"{split}.safetensors"
    arrays = load(file.read_bytes())
    change(arrays)
    seal(folder, save(arrays), split)


def seal(folder: Path, content: bytes, split: str = "train") -> None:
    (folder / f"{split}.safetensors").write_bytes(content)
    description = json.loads((folder / "dataset.json").read_text())
    description["splits"][split]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(description))


STARTS = ("sentences", "objects", "text", "mask", "image_name")


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize(("place", "value"), [(0, 1), (-1, 10**9), (-1, 0), (1, -5), (1, 10**12)])
def test_places_that_lead_beyond_the_bytes(small: Path, name: str, place: int, value: int) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[f"{name}_starts"][place] = value

    edit(small, change)
    with pytest.raises(ValueError, match=f"train.safetensors is damaged: {name}_starts does not"):
        open_split(converted(small), "train")


@pytest.mark.parametrize("name", ["objects", "picture", "image_folders"])
@pytest.mark.parametrize("value", [-1, 4, 2**62])
def test_entries_that_are_not_there(small: Path, name: str, value: int) -> None:
    edit(small, lambda arrays: arrays[name].__setitem__(0, value))
    with pytest.raises(ValueError, match=f"damaged: {name} points beyond its"):
        open_split(converted(small), "train")


@pytest.mark.parametrize("name", ["ref_id", "size", "sent_id", "mask_dropped", "image_folders"])
def test_arrays_of_another_length_or_type(small: Path, name: str) -> None:
    original = (small / "train.safetensors").read_bytes()
    for change in (
        lambda arrays: arrays.update({name: arrays[name][:-1]}),
        lambda arrays: arrays.update({name: arrays[name].astype(np.float32)}),
        lambda arrays: arrays.update({name: arrays[name][..., None]}),
        lambda arrays: arrays.update({name: arrays[name].reshape(-1)[:1].reshape(())}),
    ):
        seal(small, original)
        edit(small, change)
        with pytest.raises(ValueError, match=f"damaged: {name} has the type"):
            open_split(converted(small), "train")
    seal(small, original)
    edit(small, lambda arrays: arrays.pop(name))
    with pytest.raises(ValueError, match=f"damaged: it should not have, or lacks, {name}"):
        open_split(converted(small), "train")


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("size", (0, 0), 0, "size has entries that are no height and width"),
        ("size", (0, 1), -1, "size has entries that are no height and width"),
        ("mask_size", (0, 0), -7, "mask_size has entries that are no height and width"),
        ("mask_size", (0,), -1, "mask_size lacks the size of a mask that is not empty"),
        ("mask_dropped", (0,), -1, "mask_dropped has negative entries"),
        ("text", (3,), 255, "utf-8"),
        ("image_name", (0,), 255, "utf-8"),
        ("image_name", (0,), ord("/"), "which is not the name of a file inside"),
    ],
)
def test_values_that_cannot_be(
    small: Path, name: str, place: tuple[int, ...], value: int, message: str
) -> None:
    edit(small, lambda arrays: arrays[name].__setitem__(place, value))
    with pytest.raises(ValueError, match=f"train.safetensors is damaged: .*{message}"):
        open_split(converted(small), "train")


def test_every_byte_of_a_mask(small: Path) -> None:
    original = (small / "testA.safetensors").read_bytes()
    count = int(load(original)["mask_starts"][1])
    for place in range(min(count, 40)):
        seal(small, original, "testA")

        def change(arrays: dict[str, np.ndarray], place: int = place) -> None:
            arrays["mask"][place] ^= 2

        edit(small, change, "testA")
        data = open_split(converted(small), "testA")
        with pytest.raises(
            ValueError, match=r"testA\.safetensors: record 0: the run lengths add up"
        ):
            data[0]
        assert data[1].mask.any()


def test_what_is_no_safetensors_file(small: Path) -> None:
    content = (small / "train.safetensors").read_bytes()
    for damaged in (b"", content[:40], content[:-1], content + b"\0", b"\xff" * 64):
        seal(small, damaged)
        with pytest.raises(ValueError, match=r"train\.safetensors is not a safetensors file"):
            open_split(converted(small), "train")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "another", "has the format 'another'"),
        (("version",), 2, "is of version 2 and this cmsa_fast reads version 1"),
        (("title",), 7, "as its 'title', not text"),
        (("origin",), [], "as its 'origin', not a dictionary"),
        (("origin", "form"), 1, "as its 'form', not text"),
        (("published_expressions", "val"), "many", "as its 'val', not an integer"),
        (("image_folders",), {}, "as its 'image_folders', not a list"),
        (("image_folders", 0, "absolute"), [1], "something else than text in its 'absolute'"),
        (("splits",), [], "as its 'splits', not a dictionary"),
        (("splits", "val"), 3, "where a dictionary is expected"),
        (("splits", "val", "file"), "../val.safetensors", "is no name of a file in it"),
        (("splits", "val", "file"), "", "is no name of a file in it"),
        (("splits", "val", "sha256"), None, "as its 'sha256', not text"),
        (("splits", "val", "masks"), -1, "has -1 as its 'masks'"),
        (("splits", "val", "references"), 10**18, "ref_id has the type"),
        (("problems",), None, "as its 'problems', not a list"),
    ],
)
def test_a_description_with_something_else(
    small: Path, path: tuple[Any, ...], value: object, message: str
) -> None:
    file = small / "dataset.json"
    description = json.loads(file.read_text())
    inner = description
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=message):
        open_split(converted(small), "val")


def test_a_description_cut_short(small: Path) -> None:
    file = small / "dataset.json"
    content = file.read_bytes()
    for length in range(0, len(content) - 2, 97):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"dataset\.json is not a JSON file"):
            open_split(converted(small), "val")


# The command


def test_the_command(tmp_path: Path) -> None:
    layout = every_mask_form(tmp_path / "refer")
    del layout.references[1]["ref_id"]
    arguments = ["--root", str(layout.write()), "--to", str(tmp_path / "set"), "--copy-images"]
    settings = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    options = tyro.cli(ConvertOptions, args=arguments, config=settings)
    text = format_convert(run_convert(options))
    assert f"refcoco (unc) is now in {tmp_path / 'set'}\n" in text
    assert "  train        7 expressions in 4 records, 3 masks, 2 images" in text
    assert "Images in the folder: 4, " in text
    assert "Left out 1 records that cannot be used:\n" in text
    assert "reference 1 has no 'ref_id'" in text
    strict = replace(options, to=tmp_path / "strict", strict=True)
    with pytest.raises(ValueError, match="reference 1 has no 'ref_id'"):
        run_convert(strict)
    some = replace(options, to=tmp_path / "some", splits=("val",), copy_images=False)
    text = format_convert(run_convert(some))
    assert f"Images stay in {tmp_path / 'refer' / COCO_FOLDER}." in text


def test_image_files_are_found_in_their_folders(small: Path) -> None:
    reading = read_records(converted(small), "val", ErrorCollector(strict=True))
    image = reading.records[0].image
    assert isinstance(image, ImageFile)
    assert image.locate().is_file()
