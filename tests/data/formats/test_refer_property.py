"""REFER records with arbitrary damage give usable records or one clear error."""

from __future__ import annotations

import json
import pickle
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from support.damage import damage
from support.refer_layout import ReferLayout, small_refcoco

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from support.strategies import anything_text, few, pickle_junk, segmentations  # noqa: E402

from cmsa_fast.data import ErrorCollector, Record, RecordDataset, Source, read_records
from cmsa_fast.data.formats.refer import read_references

pytestmark = pytest.mark.usefixtures("quiet_within_little_memory")

FILES = ("refs(unc).p", "instances.json")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> ReferLayout:
    layout = small_refcoco(tmp_path_factory.mktemp("refer"))
    layout.write()
    return layout


def read_all(root: Path, errors: ErrorCollector) -> list[Record]:
    return list(read_records(Source(form="refer", root=root), None, errors).records)


def assert_usable(records: list[Record]) -> None:
    """Checks that images, masks and expressions are readable, or refused with their location."""
    for record in records:
        assert isinstance(record.image_id, int)
        assert isinstance(record.ref_id, int)
        assert isinstance(record.split, str)
        assert all(isinstance(sent_id, int) and isinstance(said, str) for sent_id, said in record.expressions)
    try:
        data = RecordDataset(records, title="it", for_training=False)
    except ValueError as error:
        assert "no usable expression" in str(error)  # noqa: PT017
        return
    for i in range(len(data)):
        try:
            sample = data[i]
        except (ValueError, OSError) as error:
            text = str(error)
            assert "instances.json" in text or "image" in text  # noqa: PT017
        else:
            assert sample.mask.dtype == torch.bool
            assert sample.image.shape[1:] == sample.mask.shape


def check(root: Path, references: int | None) -> None:
    """Reads strictly and leniently, and compares the outcomes."""
    strict: list[Record] | None = None
    refusal = ""
    try:
        strict = read_all(root, ErrorCollector(strict=True))
    except ValueError as error:
        refusal = str(error)
        assert any(name in refusal for name in FILES)  # noqa: PT017
        assert len(refusal) < 1000  # noqa: PT017
    errors = ErrorCollector(strict=False)
    try:
        lenient = read_all(root, errors)
    except ValueError as error:
        assert strict is None
        assert any(name in str(error) for name in FILES)  # noqa: PT017
        return
    assert (strict is None) == bool(errors.count)
    assert all(any(name in line for name in FILES) for line in errors.messages)
    if references is not None:
        assert len(lenient) + errors.count == references
    assert_usable(lenient)


# Every place of a record that a damaged file may fill with anything.
PLACES = [
    *(("references", 0, key) for key in ("ref_id", "ann_id", "image_id", "split", "sentences")),
    ("references", 1, "sentences", 0),
    *(("references", 1, "sentences", 0, key) for key in ("sent", "sent_id", "raw")),
    ("references", 2),
    *(("annotations", 0, key) for key in ("id", "image_id", "segmentation", "iscrowd")),
    ("annotations", 1),
    *(("images", 0, key) for key in ("id", "file_name", "height", "width")),
    ("images", 1),
    ("images",),
    ("annotations",),
    ("references",),
]


AWKWARD: dict[tuple[Any, ...], tuple[Any, ...]] = {
    ("references", 0, "image_id"): (10**5000, "9" * 5000, "7", True),
    ("references", 0, "ref_id"): (10**5000, "9" * 5000),
    ("references", 0, "ann_id"): (10**5000, "no number", [1100]),
    ("annotations", 0, "id"): (None, 1101, 10**400, True),
    ("annotations", 0, "image_id"): ([[]], "a\nb", 10**400),
    ("annotations", 0, "segmentation"): (
        {"size": [2**40, 1], "counts": [2**40]},
        {"size": [2**61, 2], "counts": [2**62] * 5},
        {"size": ["a" * 5000, 1], "counts": []},
        [[0.5, 10**400, 1, 1, 2, 2]],
    ),
    ("images", 0, "id"): (11, None, "7"),
    ("images", 0, "file_name"): ("a" * 5000, "a\0b", "\ud800", "a\nb", "../a"),
    ("images", 0, "height"): (10**400, 2**70, 10**9, 1.0),
}


@few(250)
@given(
    place=st.sampled_from(PLACES),
    other=st.sampled_from(PLACES),
    value=pickle_junk | segmentations,
    second=pickle_junk,
    remove=st.booleans(),
)
def test_arbitrary_values_in_any_field(
    sound: ReferLayout, place: tuple[Any, ...], other: tuple[Any, ...], value: Any, second: Any, remove: bool
) -> None:
    changes = [(place, value)] if remove else [(place, value), (other, second)]
    check_changed(sound, changes, remove=remove)


def check_changed(sound: ReferLayout, changes: list[tuple[tuple[Any, ...], Any]], *, remove: bool = False) -> None:
    keys = ("references", "images", "annotations")
    whole = pickle.loads(pickle.dumps({key: getattr(sound, key) for key in keys}))
    for path, new in changes:
        if path[0] == "references" or _is_json(new):
            with suppress(KeyError, IndexError, TypeError):  # the other change removed the place
                damage(whole, path, ... if remove and len(path) > 2 else new)
    references = whole["references"]
    _write(sound.root, references, {key: whole[key] for key in keys[1:]})
    check(sound.root, len(references) if isinstance(references, list) else None)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        pytest.param(path, value, id=f"{'-'.join(map(str, path))}-{i}")
        for path, values in AWKWARD.items()
        for i, value in enumerate(values)
    ],
)
def test_awkward_values(sound: ReferLayout, path: tuple[Any, ...], value: Any) -> None:
    check_changed(sound, [(path, value)])


@few(150)
@given(
    protocol=st.sampled_from([0, 2, 4]),
    name=st.sampled_from(FILES),
    at=st.floats(0, 1, exclude_max=True),
    change=st.integers(0, 255),
)
def test_truncated_file_or_changed_byte(
    sound: ReferLayout, protocol: int, name: str, at: float, change: int
) -> None:
    sound.write(protocol)
    file = sound.root / "refcoco" / name
    data = file.read_bytes()
    place = int(at * len(data))
    file.write_bytes(data[:place])
    with pytest.raises(ValueError, match=re.escape(name)):
        read_all(sound.root, ErrorCollector(strict=True))
    with pytest.raises(ValueError, match=re.escape(name)):
        read_all(sound.root, ErrorCollector(strict=False))
    file.write_bytes(data[:place] + bytes([change]) + data[place + 1 :])
    check(sound.root, None)


@few(100)
@given(said=anything_text, protocol=st.sampled_from([0, 2, 4]), escaped=st.booleans())
def test_expressions_are_read_unchanged(sound: ReferLayout, said: str, protocol: int, escaped: bool) -> None:
    record = pickle.loads(pickle.dumps(sound.references[0]))
    record["sentences"][0].update(sent=said, raw=said)
    as_pickle, as_json = sound.root / "one.p", sound.root / "one.json"
    as_pickle.write_bytes(pickle.dumps([record], protocol=protocol))
    text = json.dumps([record], ensure_ascii=escaped)
    as_json.write_bytes(text.encode("utf-8", "surrogatepass"))
    for file in (as_pickle, as_json):
        for writing in ("sent", "raw"):
            (reference,) = read_references(file, writing, ErrorCollector(strict=True)).references
            assert reference.expressions[0][1] == said


def _write(root: Path, references: Any, instances: Any) -> None:
    (root / "refcoco" / FILES[0]).write_bytes(pickle.dumps(references, protocol=2))
    # Without a limit on the digits of integers, as in a file edited by hand.
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        (root / "refcoco" / FILES[1]).write_text(json.dumps(instances))
    finally:
        sys.set_int_max_str_digits(limit)


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(one) for key, one in value.items())
    if isinstance(value, list):
        return all(_is_json(one) for one in value)
    return value is None or isinstance(value, bool | int | float | str)
