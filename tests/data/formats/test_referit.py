"""ReferIt in the Berkeley form: splits, inverted masks, sizes, and damage."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.left_out import check_left_out

from cmsa_fast.data import Source, open_split, read_records
from cmsa_fast.data.dataset import RecordDataset
from cmsa_fast.data.errors import ErrorCollector

scipy_io = pytest.importorskip("scipy.io", reason="masks of ReferIt are read by scipy (referit)")

SIZES = {"38": (23, 37), "7023": (41, 29), "115": (31, 31)}  # height and width


class ReferitLayout:
    """Three images with masks of two regions each; `write` adds queries and sizes."""

    def __init__(self, root: Path, records: str = "", data: str = "") -> None:
        self.root, self.records, self.data = root, root / records, root / data
        self.queries: dict[str, Any] = {
            "train": {"38_1": ["sky", "the sky"], "38_2": ["left house"]},
            "val": {"7023_1": ["café in the middle "]},
            "test": {"115_2": ["people"], "115_1": ["water", "the lake"]},
        }
        self.queries["trainval"] = self.queries["train"] | self.queries["val"]
        self.sizes: Any = {f"{name}.jpg": [w, h] for name, (h, w) in SIZES.items()}
        self.pixels: dict[str, np.ndarray] = {}
        self.masks: dict[str, np.ndarray] = {}
        for folder in ("images", "mask"):
            (self.data / folder).mkdir(parents=True)
        for name, (height, width) in SIZES.items():
            generator = np.random.default_rng(int(name))
            pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(self.data / "images" / f"{name}.jpg", "PNG")
            self.pixels[name] = pixels
            for region in (1, 2):
                key = f"{name}_{region}"
                self.masks[key] = generator.random((height, width)) < 0.2
                self.write_mask(key, segimg_t=np.where(self.masks[key], 0, 200).astype(np.int16))

    def write_mask(self, key: str, **variables: Any) -> Path:
        file = self.data / "mask" / f"{key}.mat"
        scipy_io.savemat(file, variables, do_compression=True)
        return file

    def write(self) -> Path:
        self.records.mkdir(parents=True, exist_ok=True)
        for split, queries in self.queries.items():
            text = json.dumps(queries, ensure_ascii=False, separators=(",\n", ":\n"))
            (self.records / f"referit_query_{split}.json").write_text(text, encoding="utf-8")
        if self.sizes is not None:
            (self.records / "referit_imsize.json").write_text(json.dumps(self.sizes))
        return self.root


@pytest.fixture
def layout(tmp_path: Path) -> ReferitLayout:
    return ReferitLayout(tmp_path)


def opened(layout: ReferitLayout, split: str = "test", **options: Any) -> RecordDataset:
    return open_split(Source(form="referit", root=layout.write()), split, **options)


@pytest.mark.parametrize("has_sizes", [True, False])
def test_expressions_images_and_masks(layout: ReferitLayout, has_sizes: bool) -> None:
    if not has_sizes:
        layout.sizes = None
    data = opened(layout)
    assert data.expressions() == ["people", "water", "the lake"]
    assert data.image_ids() == [115, 115, 115]
    for i, key in enumerate(["115_2", "115_1", "115_1"]):
        sample = data[i]
        np.testing.assert_array_equal(sample.mask.numpy(), layout.masks[key])
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), layout.pixels["115"])
        assert 0.1 < sample.mask.float().mean() < 0.3
    assert data.title == "ReferIt (berkeley) test"
    assert data.report.published_expressions == 60105


def test_sizes_are_width_and_height(layout: ReferitLayout) -> None:
    data = opened(layout, "trainval")
    assert [record.size for record in data.records] == [(23, 37), (23, 37), (41, 29)]
    for i in range(len(data)):
        assert data[i].mask.shape == data[i].image.shape[1:] == data.records[max(i - 1, 0)].size


def test_expressions_are_as_typed(layout: ReferitLayout) -> None:
    source = Source(form="referit", root=layout.write(), text="raw")
    assert open_split(source, "val").expressions() == ["café in the middle "]


def test_every_split_and_all_of_them(layout: ReferitLayout) -> None:
    source = Source(form="referit", root=layout.write())
    records = read_records(source, None, ErrorCollector(strict=True)).records
    assert [record.split for record in records] == [*["train"] * 2, "val", *["trainval"] * 3, *["test"] * 2]
    own = {(one.split, one.ref_id): [sent_id for sent_id, _ in one.expressions] for one in records}
    for split in ("train", "val"):
        for record in open_split(source, split).records:
            assert own["trainval", record.ref_id] == own[split, record.ref_id]
    expressions = [sent_id for one in records if one.split != "trainval" for sent_id, _ in one.expressions]
    assert len(expressions) == len(set(expressions)) == 7
    assert len({one.ref_id for one in records}) == 5
    assert len({id(mask) for one in records for mask in one.objects}) == 5


def test_missing_split_lists_the_others(layout: ReferitLayout) -> None:
    del layout.queries["trainval"]
    for split in ("trainval", "testA", "all", ""):
        with pytest.raises(ValueError, match="is not in .*, which has train, val, test$"):
            opened(layout, split)


@pytest.mark.parametrize(
    ("records", "data"),
    [
        ("data", "referit-dataset"),
        ("exp-referit/data", "exp-referit/referit-dataset"),
        (".", "../referit-dataset"),
        ("referit", ""),
    ],
)
def test_folders_of_the_files(tmp_path: Path, records: str, data: str) -> None:
    (tmp_path / "inner").mkdir()
    layout = ReferitLayout(tmp_path / "inner", records, data)
    sample = opened(layout)[0]
    np.testing.assert_array_equal(sample.mask.numpy(), layout.masks["115_2"])


def test_files_as_the_archive_of_saiapr_unpacks(layout: ReferitLayout) -> None:
    inner = layout.root / "images" / "saiapr_tc-12" / "00"
    inner.mkdir(parents=True)
    (layout.root / "mask").rename(inner / "segmentation_masks")
    (inner / "images").mkdir()
    for file in (layout.root / "images").glob("*.jpg"):
        file.rename(inner / "images" / file.name)
    sample = opened(layout)[1]
    np.testing.assert_array_equal(sample.mask.numpy(), layout.masks["115_1"])


@pytest.mark.parametrize("folders", [("", ""), ("data/split", "data/metadata")])
def test_splits_as_lists_of_images(tmp_path: Path, folders: tuple[str, str]) -> None:
    layout = ReferitLayout(tmp_path)
    lists, metadata = (tmp_path / folder for folder in folders)
    for folder in (lists, metadata):
        folder.mkdir(parents=True, exist_ok=True)
    everything = layout.queries["train"] | layout.queries["val"] | layout.queries["test"]
    (metadata / "referit_query_dict.json").write_text(json.dumps(everything))
    (metadata / "referit_imsize_dict.json").write_text(json.dumps({"7023": [29, 41]}))
    (lists / "referit_trainval_imlist.txt").write_text("7023\n38\n")
    (lists / "referit_test_imlist.txt").write_text("115\n")
    source = Source(form="referit", root=tmp_path)
    data = open_split(source, "trainval")
    assert data.expressions() == ["sky", "the sky", "left house", "café in the middle "]
    assert [record.size for record in data.records] == [None, None, (41, 29)]
    assert {record.split for record in data.records} == {"trainval"}
    assert len(open_split(source, "test")) == 3
    with pytest.raises(ValueError, match="which has trainval, test$"):
        open_split(source, "val")
    (lists / "referit_test_imlist.txt").write_text("115\nlake\n")
    with pytest.raises(ValueError, match=r"test_imlist\.txt has the line 'lake'"):
        open_split(source, "test")
    (lists / "referit_test_imlist.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"test_imlist\.txt is not a list of image numbers"):
        open_split(source, "test")


def test_json_file_of_a_split_has_precedence_over_its_list(layout: ReferitLayout) -> None:
    (layout.write() / "referit_query_all.json").write_text('{"115_1": ["other"]}')
    (layout.root / "referit_test_imlist.txt").write_text("115")
    assert len(opened(layout)) == 3


@pytest.mark.parametrize(
    ("key", "expressions", "message"),
    [
        ("115_1", "water", r"test\.json: 115_1 has a value of type str, not a list of expressions"),
        ("115_1", ["water", 5], "115_1 sentence 1 is a value of type int, not text"),
        ("115_1", ["water"] * 10_001, "115_1 has 10001 expressions"),
        ("115", ["water"], r"test\.json has the key '115', where <image>_<region> is"),
        ("../115_1", ["water"], "has the key '../115_1'"),
        ("115_1/2", ["water"], "has the key '115_1/2'"),
        ("115_99999", ["water"], "has the key '115_99999'"),
        ("", ["water"], "has the key ''"),
    ],
)
def test_damaged_region(layout: ReferitLayout, key: str, expressions: Any, message: str) -> None:
    layout.queries["test"] = {"115_2": ["people"], key: expressions, "38_1": ["sky"]}
    check_left_out(lambda errors: opened(layout, errors=errors), message, ["people", "sky"])


@pytest.mark.parametrize(
    "size", [None, 480, [480], [480, 360, 3], ["480", "360"], [480.0, 360.0], [0, 360], [True, 1]]
)
def test_damaged_size(layout: ReferitLayout, size: Any) -> None:
    layout.sizes["38.jpg"] = size
    with pytest.raises(ValueError, match=r"imsize\.json has .*38\.jpg"):
        opened(layout, "train")
    errors = ErrorCollector(strict=False)
    assert opened(layout, "trainval", errors=errors).expressions() == ["café in the middle "]
    assert errors.count == 2


@pytest.mark.parametrize("file", ["referit_query_test.json", "referit_imsize.json"])
def test_damaged_files(layout: ReferitLayout, file: str) -> None:
    path = layout.write() / file
    whole = path.read_bytes()
    source = Source(form="referit", root=layout.root)
    for content, message in (
        (whole[:-4], "is not a JSON file"),
        (b"[]", "holds a value of type list where a dictionary is expected"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{file} {message}"):
            open_split(source, "test", errors=ErrorCollector(strict=False))


def test_split_of_no_region(layout: ReferitLayout) -> None:
    layout.queries["test"] = {}
    with pytest.raises(ValueError, match="split 'test' has no region"):
        opened(layout)


def test_missing_files_and_folders(layout: ReferitLayout, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder .*absent. A ReferIt folder in the"):
        open_split(Source(form="referit", root=tmp_path / "absent"), "test")
    source = Source(form="referit", root=layout.root)
    with pytest.raises(FileNotFoundError, match="there is no split of ReferIt in"):
        open_split(source, "test")
    layout.write()
    (layout.root / "images").rename(layout.root / "photos")
    with pytest.raises(FileNotFoundError, match="there is no folder of images in"):
        open_split(source, "test")
    own = Source(form="referit", root=layout.root, image_folder=layout.root / "photos")
    assert open_split(own, "test")[0].image.shape == (3, 31, 31)
    (layout.root / "mask").rename(layout.root / "regions")
    with pytest.raises(FileNotFoundError, match="there is no folder of masks in"):
        open_split(own, "test")


@pytest.mark.parametrize("argument", ["name", "split_by"])
def test_arguments_of_other_forms(layout: ReferitLayout, argument: str) -> None:
    options: dict[str, Any] = {argument: "unc"}
    with pytest.raises(ValueError, match=f"{argument} of this form is '.*', not 'unc'"):
        open_split(Source(form="referit", root=layout.write(), **options), "test")


def test_missing_masks_and_images_are_errors_on_access(layout: ReferitLayout) -> None:
    (layout.root / "mask" / "115_2.mat").unlink()
    (layout.root / "images" / "38.jpg").unlink()
    data = opened(layout)
    with pytest.raises(FileNotFoundError, match=r"there is no mask .*115_2\.mat"):
        data[0]
    assert data[1].expression == "water"
    with pytest.raises(FileNotFoundError, match=r"38\.jpg"):
        opened(layout, "train")[0]


def test_damaged_masks_are_errors_that_name_the_file(layout: ReferitLayout) -> None:
    data = opened(layout)
    (layout.root / "mask" / "115_2.mat").write_bytes(b"no mask")
    with pytest.raises(ValueError, match=r"test\.json: 115_2: .*115_2\.mat"):
        data[0]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"mask": np.zeros((31, 31))}, "has no variable 'segimg_t'"),
        ({"segimg_t": "text"}, "has no array of numbers as its 'segimg_t'"),
        ({"segimg_t": {"a": 1}}, "has no array of numbers"),
        ({"segimg_t": np.array([[1, "a"]], dtype=object)}, "has no array of numbers"),
        ({"segimg_t": np.ones((31, 31)) * 1j}, "has no array of numbers"),
        ({"segimg_t": np.zeros((31, 30))}, r"is 31 x 30 \(height x width\) and its image 31 x 31"),
        ({"segimg_t": np.zeros((31, 31, 1, 2))}, "is 31 x 31 x 1 x 2"),
    ],
)
def test_mat_files_with_other_content(layout: ReferitLayout, variables: dict[str, Any], message: str) -> None:
    layout.write_mask("115_2", **variables)
    with pytest.raises(ValueError, match=rf"115_2\.mat {message}"):
        opened(layout)[0]


def test_without_scipy_the_message_says_how_to_install_it(
    layout: ReferitLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"pip install 'cmsa_fast\[referit\]'"):
        opened(layout)
