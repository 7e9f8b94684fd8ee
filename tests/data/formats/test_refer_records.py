"""Damaged REFER records are refused with their place."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from support.refer_layout import ReferLayout, small_refcoco, square

from cmsa_fast.data.formats.refer_records import read_references, read_targets


def references_file(layout: ReferLayout) -> Path:
    return layout.write() / layout.name / f"refs({layout.split_by}).p"


def read_both(layout: ReferLayout) -> list[Any]:
    references = read_references(references_file(layout), "sent")
    return read_targets(layout.root / layout.name / "instances.json", references)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_references_in_the_order_of_the_file(tmp_path: Path, protocol: int) -> None:
    layout = small_refcoco(tmp_path)
    layout.write(protocol)
    references = read_references(tmp_path / "refcoco" / "refs(unc).p", "sent")
    assert [reference.ref_id for reference in references] == [100, 101, 102, 103]
    assert [reference.image_id for reference in references] == [7, 11, 7, 13]
    assert [reference.split for reference in references] == ["train", "train", "train", "val"]
    assert references[0].expressions == ((0, "left cup"), (1, "café on the left"))
    raw = read_references(tmp_path / "refcoco" / "refs(unc).p", "raw")
    assert raw[0].expressions == ((0, "LEFT CUP"), (1, "CAFÉ ON THE LEFT"))


def test_records_as_python2_wrote_them(tmp_path: Path) -> None:
    file = tmp_path / "refs(unc).p"
    # [{"ref_id": 5, "ann_id": u"38_1", "image_id": 38, "split": "train",
    #   "expressions": [{"sent_id": 9, "sent": "caf\xc3\xa9"}]}] at protocol 0 of Python 2.7
    file.write_bytes(
        b"(lp0\n(dp1\nS'ref_id'\np2\nI5\nsS'ann_id'\np3\nV38_1\np4\nsS'image_id'\np5\nL38L\n"
        b"sS'split'\np6\nS'train'\np7\nsS'sentences'\np8\n(lp9\n(dp10\nS'sent_id'\np11\nI9\n"
        b"sS'sent'\np12\nS'caf\\xc3\\xa9'\np13\nsasa."
    )
    (reference,) = read_references(file, "sent")
    assert (reference.ref_id, reference.annotations, reference.image_id) == (5, ("38_1",), 38)
    assert reference.expressions == ((9, "café"),)


def test_targets_follow_the_references(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.annotations.reverse()
    layout.images.reverse()
    targets = read_both(layout)
    assert [target.size for target in targets] == [(23, 37), (41, 29), (23, 37), (31, 31)]
    assert targets[1].file_name == "COCO_train2014_000000000011.jpg"
    assert [int(target.masks[0].decode(*target.size).sum()) for target in targets] == [
        175,
        81,
        49,
        121,
    ]


def test_identifiers_may_be_text(tmp_path: Path) -> None:
    layout = ReferLayout(tmp_path, "refclef", "unc", "images/saiaprtc12")
    layout.add_image(38, 5, 9, "38.jpg")
    layout.add_reference(38, [square(1, 1, 3)], ["sky"], ann_id="38_1")
    layout.references[0]["image_id"] = "38"
    assert read_both(layout)[0].masks[0].decode(5, 9).sum() == 9


@pytest.mark.parametrize("key", ["ref_id", "ann_id", "image_id", "split", "sentences"])
def test_a_reference_without_a_field(tmp_path: Path, key: str) -> None:
    layout = small_refcoco(tmp_path)
    del layout.references[2][key]
    with pytest.raises(ValueError, match=rf"refs\(unc\)\.p: reference 2 has no '{key}'"):
        read_both(layout)


@pytest.mark.parametrize("key", ["sent", "sent_id"])
def test_a_expression_without_a_field(tmp_path: Path, key: str) -> None:
    layout = small_refcoco(tmp_path)
    del layout.references[3]["sentences"][1][key]
    with pytest.raises(ValueError, match=rf"reference 3 expression 1 has no '{key}'"):
        read_both(layout)


def test_only_the_text_asked_for_is_needed(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    del layout.references[1]["sentences"][0]["raw"]
    assert len(read_references(references_file(layout), "sent")) == 4
    with pytest.raises(ValueError, match="reference 1 expression 0 has no 'raw'"):
        read_references(references_file(layout), "raw")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ref_id", 1.5, "float as its 'ref_id', not an integer"),
        ("ref_id", True, "bool as its 'ref_id', not an integer"),
        ("image_id", "seven", "str as its 'image_id', not an integer"),
        ("split", 3, "int as its 'split', not text"),
        ("sentences", "man", "str as its 'expressions', not a list"),
        ("sentences", ["man"], "expression 0 is a value of type str where a dictionary"),
        ("ann_id", [1101, 1102], "gRefCOCO"),
        ("ann_id", None, "NoneType as its 'ann_id'"),
    ],
)
def test_a_field_of_another_type(tmp_path: Path, key: str, value: Any, message: str) -> None:
    layout = small_refcoco(tmp_path)
    layout.references[1][key] = value
    with pytest.raises(ValueError, match=rf"refs\(unc\)\.p: reference 1 .*{message}"):
        read_both(layout)


def test_references_that_are_no_list(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.references = {"refs": []}  # type: ignore[assignment]
    with pytest.raises(ValueError, match="dict where a list"):
        read_references(references_file(layout), "sent")
    layout.references = [7]  # type: ignore[list-item]
    with pytest.raises(ValueError, match="reference 0 is a value of type int"):
        read_references(references_file(layout), "sent")


@pytest.mark.parametrize("key", ["file_name", "height", "width"])
def test_a_image_without_a_field(tmp_path: Path, key: str) -> None:
    layout = small_refcoco(tmp_path)
    del layout.images[1][key]
    with pytest.raises(ValueError, match=rf"instances\.json: image 11 has no '{key}'"):
        read_both(layout)


def test_records_without_an_identifier(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    del layout.images[1]["id"]
    with pytest.raises(ValueError, match=r"instances\.json: images 1 has no 'id'"):
        read_both(layout)


def test_a_image_of_no_size(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.images[0]["width"] = 0
    with pytest.raises(ValueError, match="image 7 has the size 23 x 0"):
        read_both(layout)


def test_a_bad_mask_names_its_annotation(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.annotations[2]["segmentation"] = {"size": [23, 37], "counts": [5]}
    with pytest.raises(ValueError, match=r"instances\.json: annotation 1102: .*add up to 5"):
        read_both(layout)
    del layout.annotations[2]["segmentation"]
    with pytest.raises(ValueError, match="annotation 1102 has no 'segmentation'"):
        read_both(layout)


def test_annotations_nobody_refers_to_are_passed_over(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.annotations.append({"id": 5, "image_id": 7, "segmentation": "nonsense"})
    assert len(read_both(layout)) == 4


@pytest.mark.parametrize(
    ("table", "message"),
    [("annotations", "no annotation 1101, which ref_id 101"), ("images", "no image 11, which")],
)
def test_a_missing_entry(tmp_path: Path, table: str, message: str) -> None:
    layout = small_refcoco(tmp_path)
    del getattr(layout, table)[1]
    with pytest.raises(ValueError, match=message):
        read_both(layout)


@pytest.mark.parametrize("table", ["annotations", "images"])
def test_an_entry_that_is_there_twice(tmp_path: Path, table: str) -> None:
    layout = small_refcoco(tmp_path)
    getattr(layout, table).append(dict(getattr(layout, table)[0]))
    with pytest.raises(ValueError, match=f"two entries of id .* in its '{table}'"):
        read_both(layout)


def test_an_annotation_of_another_image(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.annotations[0]["image_id"] = 11
    with pytest.raises(ValueError, match="annotation 1100 is of image 11, but ref_id 100"):
        read_both(layout)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", b'{"images": [', b"\xff\xfe\x00", b"[" * 200_000, b"[]", b"{}"],
)
def test_instances_that_are_no_json_of_that_form(tmp_path: Path, content: bytes) -> None:
    references = read_references(references_file(small_refcoco(tmp_path)), "sent")
    file = tmp_path / "refcoco" / "instances.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"instances\.json"):
        read_targets(file, references)


def test_tables_that_are_no_lists(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.images = {"7": {}}  # type: ignore[assignment]
    with pytest.raises(ValueError, match="dict as its 'images', not a list"):
        read_both(layout)


def test_reading_leaves_the_garbage_collector_as_it_was(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    assert gc.isenabled()
    read_both(layout)
    assert gc.isenabled()
    layout.references[0].clear()
    with pytest.raises(ValueError, match="reference 0"):
        read_both(layout)
    assert gc.isenabled()
    gc.disable()
    try:
        read_references(references_file(small_refcoco(tmp_path)), "sent")
        assert not gc.isenabled()
    finally:
        gc.enable()
