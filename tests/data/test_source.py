"""Opening data sets of every form: at least one record, or one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.anns_layout import AnnsLayout
from support.refer_layout import ReferLayout, small_refcoco, square

from cmsa_fast.data import Collate, ErrorCollector, Record, Source, Vocabulary, load, read_records


def references_without_split(root: Path) -> Source:
    layout = small_refcoco(root)
    for reference in layout.references:
        del reference["split"]
    return Source(form="refer", root=layout.write())


def references_without_objects(root: Path) -> Source:
    layout = small_refcoco(root)
    for annotation in layout.annotations:
        annotation["segmentation"] = "none"
    return Source(form="refer", root=layout.write())


def contradictions(root: Path) -> Source:
    layout = ReferLayout(root, "grefcoco")
    layout.add_image(7, 23, 37)
    for split in ("train", "train", "train", "val"):
        layout.add_reference(7, square(1, 1, 5), ["a cup"], split)
        layout.references[-1].update(ann_id=[-1, 3], no_target=False)
    return Source(form="grefcoco", root=layout.write())


def no_names_of_images(root: Path) -> Source:
    layout = AnnsLayout(root)
    for _ in range(4):
        layout.add("train", "it")
        del layout.splits["train"][-1]["img_name"]
    return Source(form="anns-masks", root=layout.write())


def no_regions(root: Path) -> Source:
    pytest.importorskip("scipy", reason="scipy reads the masks of ReferIt")
    for folder in ("mask", "images"):
        (root / folder).mkdir(parents=True)
    content = {f"image {number}": ["it"] for number in range(4)}
    (root / "referit_query_train.json").write_text(json.dumps(content))
    return Source(form="referit", root=root)


LOST: list[tuple[Callable[[Path], Source], str]] = [
    (references_without_split, "has no 'split'"),
    (references_without_objects, "a segmentation must be polygons or run lengths"),
    (contradictions, "can only stand alone"),
    (no_names_of_images, "has no 'img_name'"),
    (no_regions, "<image>_<region> is expected"),
]


@pytest.mark.parametrize(("write", "reason"), LOST)
@pytest.mark.parametrize("split", ["train", None])
def test_data_set_without_usable_record_is_one_error(
    tmp_path: Path, write: Callable[[Path], Source], reason: str, split: str | None
) -> None:
    source = write(tmp_path)
    errors = ErrorCollector(strict=False)
    with pytest.raises(ValueError, match=r"; [34] records could not be used, the first: ") as caught:
        read_records(source, split, errors)
    assert f"; {errors.count} records" in str(caught.value)
    assert str(caught.value).endswith(errors.messages[0])
    assert reason in errors.messages[0]
    with pytest.raises(ValueError, match=reason) as caught:
        read_records(source, split, ErrorCollector(strict=True))
    assert "could not be used" not in str(caught.value)


def test_errors_of_an_earlier_reading_are_not_counted_again(tmp_path: Path) -> None:
    errors = ErrorCollector(strict=False)
    for number in (1, 2):
        source = references_without_split(tmp_path / str(number))
        with pytest.raises(ValueError, match="; 4 records could not be used") as caught:
            read_records(source, "train", errors)
        assert str(source.root) in str(caught.value).partition("the first:")[2]
        assert errors.count == 4 * number


def test_usable_records_are_returned(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    del layout.references[0]["split"]
    source = Source(form="refer", root=layout.write())
    errors = ErrorCollector(strict=False)
    assert len(read_records(source, "train", errors).records) == 2
    assert errors.count == 1
    with pytest.raises(ValueError, match=r"split 'test' has no reference .* 1 records could not"):
        read_records(source, "test", errors)


def test_load_opens_a_split_in_one_line(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.name, layout.split_by = "refcoco+", "unc"
    data = load("refer", str(layout.write()), "val", name="refcoco+", text="raw")
    assert data.expressions() == ["DOG", "BROWN DOG"]
    assert data.title == "refcoco+ (unc) val"
    del layout.references[3]["ref_id"]
    with pytest.raises(ValueError, match="reference 3 has no 'ref_id'"):
        load("refer", layout.write(), "val", name="refcoco+")
    with pytest.raises(TypeError, match="nme"):
        load("refer", tmp_path, "val", nme="refcoco+")


def test_example_of_the_package(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path).write()
    dataset = load("refer", root, "train", name="refcoco")
    vocabulary = Vocabulary.from_expressions(dataset.expressions())
    batch = Collate(vocabulary, size=320)([dataset[0], dataset[1]])
    assert batch.masks.shape == (2, 320, 320)
    assert all(isinstance(record, Record) for record in dataset.records)


@pytest.mark.parametrize(("argument", "value"), [("form", "coco"), ("text", "cleaned")])
def test_unknown_forms_and_text_versions(argument: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument} must be one of .*, not '{value}'"):
        Source(**{"form": "refer", "root": Path(), argument: value})  # type: ignore[arg-type]
