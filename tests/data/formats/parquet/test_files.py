"""Parquet files: shards, missing and damaged files, embedded images."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support.parquet_layout as layout
import torch
from support.parquet_layout import (
    SIZE,
    benchmark_entry,
    benchmark_row,
    check_images_and_masks,
    covered,
    refcoco_rows,
    shard,
    source,
    write_benchmark,
    write_refcoco,
)
from support.refer_layout import noise, sentences, square
from torch.utils.data import DataLoader

from cmsa_fast.data import ErrorCollector, Sample, open_split, read_records
from cmsa_fast.data.formats.parquet import files
from cmsa_fast.data.formats.parquet.files import EncodedImage


def test_file_of_another_form_in_the_folder(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    layout.write(root / "data" / shard("testB"), [], layout.BENCHMARK)
    with pytest.raises(ValueError, match=r"testB.* has no column 'ref_id'.*it has image, image_info"):
        open_split(source(root), "testB")


def first(batch: list[Sample]) -> Sample:
    return batch[0]


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder or file .*nowhere.*00000-of"):
        open_split(source(tmp_path / "nowhere"), "val")
    with pytest.raises(FileNotFoundError, match="no Parquet file in"):
        open_split(source(tmp_path), "val")
    write_refcoco(tmp_path / "refcoco")
    with pytest.raises(FileNotFoundError, match="Its refcoco has some: give its name"):
        open_split(source(tmp_path), "val")
    with pytest.raises(ValueError, match="'other' is neither a folder of"):
        open_split(source(tmp_path, name="other"), "val")
    with pytest.raises(ValueError, match="name must be"):
        open_split(source(tmp_path / "refcoco", name="../refcoco"), "val")


def test_damaged_files(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path)
    file = root / "data" / shard("refcoco_unc_val", 0, 2)
    content = file.read_bytes()
    for damaged in (content[:-1], content[:100], b"", b"PAR1", content[:9] + content[4000:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no Parquet file, is damaged, or truncated"):
            open_split(source(root), "refcoco_unc_val")


def test_changed_byte_gives_records_or_one_clear_error(tmp_path: Path) -> None:
    rows = copy.deepcopy(refcoco_rows()["train"])
    root = write_refcoco(tmp_path / "refcoco")
    file = layout.write(root / "data" / shard("train"), rows, layout.REFCOCO)
    content = file.read_bytes()
    generator = np.random.default_rng(0)
    outcomes = set()
    for place in generator.integers(0, len(content), 150):
        changed_content = bytearray(content)
        changed_content[place] ^= int(generator.integers(1, 256))
        file.write_bytes(changed_content)
        try:
            data = open_split(source(root), "train", errors=ErrorCollector(strict=False))
            outcomes.add("whole" if len(data) == 4 else "lost")
            assert (len(data) == 4) or data.report.unusable_records
        except ValueError:
            outcomes.add("refused")
    assert outcomes >= {"whole", "refused"}


@pytest.mark.parametrize(
    ("options", "split", "said"),
    [
        ({"name": "refcoco"}, "val", "left cup"),
        ({"name": "refcoco", "split_by": "google"}, "val", "a mug"),
        ({"name": "refcocog"}, "val", "a cup"),
        ({"split_by": "umd"}, "val", "a cup"),
    ],
)
def test_benchmark_splits_by_short_names(tmp_path: Path, options: dict[str, str], split: str, said: str) -> None:
    data = open_split(source(write_benchmark(tmp_path), **options), split)
    assert data.expressions()[0] == said
    published = {"left cup": 10_834, "a cup": 4_896}
    assert data.report.published_expressions == published.get(said)


def test_benchmark_missing_split(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path)
    with pytest.raises(ValueError, match="'val' may be any of refcoco_google_val, refcoco_unc_val"):
        open_split(source(root), "val")
    with pytest.raises(ValueError, match=r"'testA' of refcoco is not in .* has refcoco_google_val"):
        open_split(source(root, name="refcoco"), "testA")
    with pytest.raises(ValueError, match=r"'refcoco_unc_testA' is not in"):
        open_split(source(root), "refcoco_unc_testA")


def test_benchmark_all_splits(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path)
    everything = read_records(source(root), None, ErrorCollector(strict=True))
    assert len(everything.records) == 7
    named = read_records(source(root, name="refcocog"), None, ErrorCollector(strict=True))
    assert [record.split for record in named.records] == ["refcocog_umd_val"]
    assert named.published_expressions == {"refcocog_umd_val": 4_896}


def test_part_of_a_split_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_benchmark(tmp_path)
    (root / "data" / shard("refcoco_unc_val", 0, 2)).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of the 2.*refcoco_unc_val-00000-of-00002"):
        open_split(source(root), "refcoco_unc_val")
    assert len(open_split(source(root), "refcocog_umd_val")) == 1
    alone = root / "data" / shard("refcoco_unc_val", 1, 2, "")
    assert open_split(source(alone), "val").expressions() == ["man"]
    assert f"{alone} is one of 2 parts of its split" in caplog.text


def test_two_copies_in_one_folder(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    layout.write(root / "data" / shard("train", end="-4fe3"), [], layout.REFCOCO)
    with pytest.raises(ValueError, match="more than one copy.*4fe3"):
        open_split(source(root), "train")
    assert len(open_split(source(root), "val")) == 1


def test_row_group_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_split(source(write_benchmark(tmp_path)), "refcoco_unc_val")
    opened: list[str] = []
    original = files.open_table

    def counted(path: Path) -> Any:
        opened.append(path.name)
        return original(path)

    monkeypatch.setattr(files, "open_table", counted)
    for i in range(len(data)):
        data[i]
    names = [shard("refcoco_unc_val", 0, 2)] * 2 + [shard("refcoco_unc_val", 1, 2, "")]
    assert opened == names


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same(tmp_path: Path, start: str) -> None:
    data = open_split(source(write_benchmark(tmp_path)), "refcoco_unc_val")
    here = [data[i] for i in range(len(data))]
    data[3]  # its row group is kept here while the workers start
    fresh = open_split(source(tmp_path), "refcoco_unc_val")
    loader = DataLoader(fresh, batch_size=1, num_workers=2, collate_fn=first, multiprocessing_context=start)
    for sample, expected in zip(loader, here, strict=True):
        assert torch.equal(sample.image, expected.image)
        assert torch.equal(sample.mask, expected.mask)


def test_encoded_images(tmp_path: Path) -> None:
    file = write_benchmark(tmp_path) / "data" / shard("refcoco_unc_val", 0, 2)
    image = EncodedImage(file, 1, 0, "x.jpg")
    same = pickle.loads(pickle.dumps(image))
    assert same == image
    assert hash(same) == hash(image)
    assert image != EncodedImage(file, 0, 0, "x.jpg")
    assert image.read_bytes() == layout.encoded(13, *SIZE)["bytes"]
    for group, row in ((1, 1), (2, 0)):
        with pytest.raises(ValueError, match=f"no row {row} in its row group {group}"):
            EncodedImage(file, group, row, "x.jpg").read_bytes()
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="is no Parquet file"):
        EncodedImage(file, 0, 1, "x.jpg").read_bytes()
    file.unlink()
    with pytest.raises(FileNotFoundError, match=str(file)):
        image.read_bytes()


def test_images_in_any_order(tmp_path: Path) -> None:
    one = [square(0, 0, 2)]
    rows = [benchmark_row(i, (5, 3), [benchmark_entry(i, i, one, sentences("it"), "val")]) for i in range(30)]
    file = tmp_path / shard("refcoco_unc_val")
    layout.write(file, rows, layout.BENCHMARK, row_group_size=8)
    data = open_split(source(file), "val")
    check_images_and_masks(data, [covered((0, 0, 2), size=(5, 3))] * 30)
    for i in np.random.default_rng(3).permutation(60) % 30:
        pixels = data.records[i].image.read(apply_orientation=False)
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), noise(i, 5, 3))
