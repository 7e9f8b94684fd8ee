"""Fields of records in the layout of REFER, and damage with its location."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from support.damage import damage
from support.refer_layout import ReferLayout, open_refer, small_refcoco, square

from cmsa_fast.data import ErrorCollector, Record, Source, read_records
from cmsa_fast.data.formats.refer import Reference, read_references


def references_file(layout: ReferLayout) -> Path:
    return layout.write() / layout.name / f"refs({layout.split_by}).p"


def references(path: Path, text: Any = "sent") -> list[Reference]:
    return read_references(path, text, ErrorCollector(strict=True)).references


def records(layout: ReferLayout, errors: ErrorCollector | None = None) -> list[Record]:
    source = Source(form="refer", root=layout.write(), name=layout.name)
    return list(read_records(source, None, errors or ErrorCollector(strict=True)).records)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_references_in_the_order_of_the_file(tmp_path: Path, protocol: int) -> None:
    layout = small_refcoco(tmp_path)
    layout.write(protocol)
    found = references(tmp_path / "refcoco" / "refs(unc).p")
    assert [reference.ref_id for reference in found] == [100, 101, 102, 103]
    assert [reference.image_id for reference in found] == [7, 11, 7, 13]
    assert [reference.split for reference in found] == ["train", "train", "train", "val"]
    assert found[0].expressions == ((0, "left cup"), (1, "café on the left"))
    raw = references(tmp_path / "refcoco" / "refs(unc).p", "raw")
    assert raw[0].expressions == ((0, "LEFT CUP"), (1, "CAFÉ ON THE LEFT"))


@pytest.mark.parametrize("mark", ["exist", "source"])
def test_expressions_that_name_nothing_are_refused(tmp_path: Path, mark: str) -> None:
    layout = small_refcoco(tmp_path)
    for reference in layout.references:
        reference["source"] = "refcoco"
        for sentence in reference["sentences"]:
            sentence["exist"] = True
    assert len(records(layout)) == 4
    if mark == "exist":
        layout.references[2]["sentences"][1]["exist"] = False
    else:
        layout.references[2]["source"] = "zero"
    with pytest.raises(ValueError, match=r"reference 2 has expressions that name nothing, .* write a manifest"):
        records(layout)


def test_json_is_read_where_the_pickle_is_missing(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    file = references_file(layout)
    file.with_suffix(".json").write_text(json.dumps(layout.references[:1]))
    assert len(open_refer(tmp_path)) == 5
    file.unlink()
    assert open_refer(tmp_path).expressions() == ["left cup", "café on the left"]


def test_records_follow_the_references(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.annotations.reverse()
    layout.images.reverse()
    found = records(layout)
    assert [record.size for record in found] == [(23, 37), (41, 29), (23, 37), (31, 31)]
    assert found[1].image.name.endswith("COCO_train2014_000000000011.jpg")
    areas = [int(record.mask(*record.size or (0, 0)).sum()) for record in found]
    assert areas == [175, 81, 49, 121]


def test_identifiers_may_be_text(tmp_path: Path) -> None:
    layout = ReferLayout(tmp_path, "refclef", "unc", "images/saiaprtc12")
    layout.add_image(38, 5, 9, "38.jpg")
    layout.add_reference(38, [square(1, 1, 3)], ["sky"], ann_id="38_1")
    layout.references[0]["image_id"] = "38"
    assert records(layout)[0].mask(5, 9).sum() == 9


REFERENCE = r"refs\(unc\)\.p: reference 1 "
SENTENCES = ("references", 1, "sentences")
DAMAGE: list[tuple[tuple[Any, ...], Any, str]] = [
    *(
        (("references", 1, key), ..., f"{REFERENCE}has no '{key}'")
        for key in ("ref_id", "ann_id", "image_id", "split", "sentences")
    ),
    ((*SENTENCES, 0, "sent"), ..., f"{REFERENCE}sentence 0 has no 'sent'"),
    ((*SENTENCES, 0, "sent_id"), ..., f"{REFERENCE}sentence 0 has no 'sent_id'"),
    (("references", 1, "ref_id"), 1.5, f"{REFERENCE}.*float as its 'ref_id', not an integer"),
    (("references", 1, "image_id"), "seven", f"{REFERENCE}.*str as its 'image_id', not an"),
    (("references", 1, "split"), 3, f"{REFERENCE}.*int as its 'split', not text"),
    (SENTENCES, "man", f"{REFERENCE}.*str as its 'sentences', not a list"),
    (SENTENCES, ["man"], f"{REFERENCE}sentence 0 is a value of type str"),
    (("references", 1, "ann_id"), [1101, 1102], f"{REFERENCE}.*gRefCOCO"),
    (("references", 1, "ann_id"), None, f"{REFERENCE}.*NoneType as its 'ann_id'"),
    (("references", 1), 7, f"{REFERENCE}is a value of type int where a dictionary"),
    *(
        (("images", 1, key), ..., rf"instances\.json: image 11 has no '{key}'")
        for key in ("file_name", "height", "width")
    ),
    (("images", 1, "width"), 0, "image 11 has the size 41 x 0"),
    (
        ("annotations", 1, "segmentation"),
        {"size": [41, 29], "counts": [5]},
        r"instances\.json: annotation 1101: .*add up to 5",
    ),
    (("annotations", 1, "segmentation"), ..., "annotation 1101 has no 'segmentation'"),
    (("annotations", 1), ..., "no annotation 1101, which ref_id 101"),
    (("images", 1), ..., "no image 11, which ref_id 101"),
    (("annotations", slice(4, 4)), [{"id": 1101}], "two entries of id 1101 in its 'annotations'"),
    (("images", slice(3, 3)), [{"id": 11}], "two entries of id 11 in its 'images'"),
    (("annotations", 1, "image_id"), 7, "annotation 1101 is of image 7, but ref_id 101"),
]


@pytest.mark.parametrize(("path", "value", "message"), DAMAGE, ids=[row[-1] for row in DAMAGE])
def test_damaged_record(tmp_path: Path, path: tuple[Any, ...], value: Any, message: str) -> None:
    layout = small_refcoco(tmp_path)
    damage(vars(layout), path, value)
    with pytest.raises(ValueError, match=message):
        records(layout)
    errors = ErrorCollector(strict=False)
    assert [record.ref_id for record in records(layout, errors)] == [100, 102, 103]
    assert errors.count == 1


def test_entry_without_identifier(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    del layout.images[1]["id"]
    with pytest.raises(ValueError, match=r"instances\.json: images 1 has no 'id'"):
        records(layout)
    errors = ErrorCollector(strict=False)
    assert len(records(layout, errors)) == 3
    assert "no image 11, which ref_id 101 needs" in errors.messages[0]


def test_only_the_requested_text_is_needed(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    del layout.references[1]["sentences"][0]["raw"]
    assert len(references(references_file(layout))) == 4
    with pytest.raises(ValueError, match="reference 1 sentence 0 has no 'raw'"):
        references(references_file(layout), "raw")


def test_damage_in_other_splits_is_not_reported(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    del layout.references[0]["sentences"]
    layout.annotations[1]["segmentation"] = "nonsense"
    layout.write()
    data = open_refer(tmp_path, split="val")
    assert data.report.unusable_records == 0
    errors = ErrorCollector(strict=False)
    data = open_refer(tmp_path, split="train", errors=errors)
    assert data.report.unusable_records == errors.count == 2
    assert data.report.references == 1


def test_repeated_reference(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.references += [dict(reference) for reference in layout.references[:2]]
    same_object = {**layout.references[0], "ref_id": 999}
    layout.references.append(same_object)
    with pytest.raises(ValueError, match=r"\.p: reference 4 repeats ref_id 100 of reference 0"):
        records(layout)
    errors = ErrorCollector(strict=False)
    data = open_refer(tmp_path, errors=errors)
    assert len(data) == 7
    assert (data.report.unusable_records, errors.repeated) == (0, 2)
    assert "reference 5 repeats ref_id 101 of reference 1" in errors.messages[1]


def test_unused_annotations_are_not_checked(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.annotations.append({"id": 5, "image_id": 7, "segmentation": "nonsense"})
    assert len(records(layout)) == 4


@pytest.mark.parametrize("content", [{"refs": []}, "refs", None])
def test_references_that_are_no_list(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "refs(unc).p"
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=f"{type(content).__name__} where a list of references"):
        references(file)


@pytest.mark.parametrize(
    "content", [b"<html>404</html>", b"[]", b"{}", b'{"images": {"7": {}}, "annotations": []}']
)
def test_instances_of_another_form(tmp_path: Path, content: bytes) -> None:
    root = small_refcoco(tmp_path).write()
    (root / "refcoco" / "instances.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"instances\.json"):
        open_refer(root)
