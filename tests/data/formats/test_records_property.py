"""Readers given anything at all: usable records, or one clear refusal; never another exception."""

from __future__ import annotations

import json
import logging
import pickle
import pickletools
import re
import resource
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from support.refer_layout import ReferLayout, small_refcoco

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from cmsa_fast.data.formats.refer_records import read_references
from hypothesis import HealthCheck, example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from cmsa_fast.data.dataset import RecordDataset
from cmsa_fast.data.errors import ErrorCollector
from cmsa_fast.data.formats.safe_pickle import loads_plain_pickle
from cmsa_fast.data.masks import parse_segmentation
from cmsa_fast.data.source import Source, read_records
from cmsa_fast.data.types import Record
from cmsa_fast.data.vocabulary import Vocabulary, tokenize

FILES = ("refs(unc).p", "instances.json")


def few(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


numbers = st.one_of(
    st.integers(-3, 50),
    st.integers(),
    st.sampled_from([2**31, 2**32, 2**63, 2**64, -(2**63) - 1]),
    st.sampled_from([400, 5000]).map(lambda digits: 10**digits),
    st.floats(),
)
anything_text = st.text(st.characters(codec=None), max_size=12)
scalars = st.one_of(st.none(), st.booleans(), numbers, anything_text)
deep = st.integers(1, 300).map(lambda depth: json.loads("[" * depth + "]" * depth))


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=8)
            | st.dictionaries(
                st.sampled_from(["size", "counts", "id", "sent"]) | anything_text, inner, max_size=4
            )
        ),
        max_leaves=12,
    )


junk = nested(scalars) | deep
pickle_junk = nested(
    scalars | st.binary(max_size=8) | st.tuples(scalars) | st.frozensets(st.integers(), max_size=2)
)
sizes = st.lists(st.one_of(st.integers(-1, 40), numbers, junk), min_size=1, max_size=3)
run_lengths = st.fixed_dictionaries(
    {
        "size": sizes | junk,
        "counts": st.one_of(st.text(max_size=9), st.binary(max_size=9), st.lists(numbers), junk),
    }
)
segmentations = st.one_of(
    junk,
    run_lengths,
    st.lists(run_lengths, max_size=3),
    st.lists(numbers, max_size=9),
    st.lists(st.lists(numbers, max_size=9), max_size=3),
)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> ReferLayout:
    layout = small_refcoco(tmp_path_factory.mktemp("refer"))
    layout.write()
    return layout


@pytest.fixture(autouse=True)
def _memory_stays() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def read_all(root: Path, errors: ErrorCollector) -> list[Record]:
    return read_records(Source(form="refer", root=root), None, errors).records


def assert_usable(records: list[Record]) -> None:
    """Images, masks and expressions can be had, or are refused in one expression that says where."""
    for record in records:
        assert isinstance(record.image_id, int)
        assert isinstance(record.ref_id, int)
        assert isinstance(record.split, str)
        assert all(
            isinstance(sent_id, int) and isinstance(said, str)
            for sent_id, said in record.expressions
        )
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
            assert "instances.json" in text or "picture" in text  # noqa: PT017
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


# Every place of a record that a damaged or foreign file may have filled with anything.
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
def test_anything_in_any_field(
    sound: ReferLayout,
    place: tuple[Any, ...],
    other: tuple[Any, ...],
    value: Any,
    second: Any,
    remove: bool,
) -> None:
    changes = [(place, value)] if remove else [(place, value), (other, second)]
    check_changed(sound, changes, remove=remove)


def check_changed(
    sound: ReferLayout, changes: list[tuple[tuple[Any, ...], Any]], *, remove: bool = False
) -> None:
    keys = ("references", "images", "annotations")
    whole = pickle.loads(pickle.dumps({key: getattr(sound, key) for key in keys}))
    for path, new in changes:
        if path[0] == "references" or _is_json(new):
            _put(whole, path, new, remove)
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
def test_a_file_cut_short_or_with_a_changed_byte(
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


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_byte_of_a_pickle(protocol: int) -> None:
    content = [{"sent": "café", "tokens": ["left", "cup"] * 3, "sent_id": 2**40, "more": 1.5}] * 3
    content += [{"sent": f"cup {i}"} for i in range(130)]  # numbers that take four bytes
    data = pickle.dumps(content, protocol=protocol)
    assert loads_plain_pickle(data, "it") == content
    rng = np.random.default_rng(protocol)
    for place in range(len(data)):
        with pytest.raises(ValueError, match="it "):
            loads_plain_pickle(data[:place], "it")
        for change in (0x7F, int(rng.integers(256))):
            changed = data[:place] + bytes([change]) + data[place + 1 :]
            try:
                loads_plain_pickle(changed, "it")
            except ValueError as error:
                assert str(error).startswith("it ")  # noqa: PT017


@pytest.mark.parametrize(
    "damage",
    [b"\x80\x02]r\xff\xff\xff\x7f.", b"\x80\x02]X\x01\0\0\0ar\0\0\0\x40a.", b"]p99999999999\n."],
)
def test_a_pickle_that_asks_for_all_memory(damage: bytes) -> None:
    with pytest.raises(ValueError, match="it is a damaged pickle: it numbers an object"):
        loads_plain_pickle(damage, "it")


@few(100)
@given(content=pickle_junk, protocol=st.sampled_from([0, 1, 2, 3, 4, 5]), shared=st.booleans())
def test_sound_pickles_are_read_as_they_are(content: Any, protocol: int, shared: bool) -> None:
    content = [content] * 2 + [{"again": content}] if shared else content
    try:
        data = pickle.dumps(content, protocol=protocol)
    except ValueError:  # numbers too long to be written out
        return
    if protocol < 4 and _asks_for_code(data):  # bytes and sets have no plain form there
        return
    assert pickle.dumps(loads_plain_pickle(data, "it"), 4) == pickle.dumps(pickle.loads(data), 4)


def _asks_for_code(data: bytes) -> bool:
    return any(operation.name == "GLOBAL" for operation, _, _ in pickletools.genops(data))


@few(150)
@given(value=segmentations)
def test_any_segmentation_is_parsed_or_refused(value: Any) -> None:
    try:
        mask = parse_segmentation(value)
    except ValueError as error:
        assert len(str(error)) < 1000  # noqa: PT017
        return
    height, width = mask.size or (7, 11)
    if height * width > 10**6:
        return
    try:
        drawn = mask.decode(height, width)
    except ValueError:
        assert mask.polygons
    else:
        assert drawn.shape == (height, width)
        assert drawn.dtype == torch.bool
        assert not (mask.is_empty and drawn.any())


points = st.lists(
    st.tuples(st.floats(-9, 49, width=32), st.floats(-9, 49, width=32)), min_size=3, max_size=9
)
sides = st.integers(1, 41)


@few(150)
@given(polygons=st.lists(points, min_size=1, max_size=4), height=sides, width=sides)
def test_polygons_are_united_as_pycocotools_fills_them(
    polygons: list[list[tuple[float, float]]], height: int, width: int
) -> None:
    written = [[number for point in polygon for number in point] for polygon in polygons]
    mask = parse_segmentation(written)
    reach = [
        -extent <= number <= 2 * extent
        for polygon in polygons
        for point in polygon
        for number, extent in zip(point, (width, height), strict=True)
    ]
    if not all(reach):
        with pytest.raises(ValueError, match="spans"):
            mask.decode(height, width)
        return
    expected = np.zeros((height, width), bool)
    for polygon in written:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy, about pycocotools
            expected |= (
                coco_mask.decode(coco_mask.frPyObjects([polygon], height, width))[..., 0] > 0
            )
    np.testing.assert_array_equal(mask.decode(height, width).numpy(), expected)
    assert mask.dropped == 0


@few(100)
@given(
    left=st.integers(0, 9),
    top=st.integers(0, 9),
    across=sides,
    down=sides,
    height=sides,
    width=sides,
)
def test_whole_pixels_of_a_rectangle(
    left: int, top: int, across: int, down: int, height: int, width: int
) -> None:
    right, bottom = min(left + across, 2 * width), min(top + down, 2 * height)
    left, top = min(left, right), min(top, bottom)
    mask = parse_segmentation([[left, top, right, top, right, bottom, left, bottom]])
    expected = np.zeros((height, width), bool)
    expected[top:bottom, left:right] = True
    np.testing.assert_array_equal(mask.decode(height, width).numpy(), expected)


@few(150)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=sides,
    width=sides,
    filled=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    form=st.sampled_from(["plain", "text", "bytes", "list"]),
    wrong=st.integers(-1, 1),
)
def test_run_lengths_are_the_pixels_down_the_columns(
    seed: int, height: int, width: int, filled: float, form: str, wrong: int
) -> None:
    pixels = np.random.default_rng(seed).random((height, width)) < filled
    runs, before = [0], False
    for pixel in pixels.T.reshape(-1).tolist():
        if pixel != before:
            runs.append(0)
        runs[-1] += 1
        before = pixel
    counts: Any = runs
    if form != "plain":
        counts = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"]
    if form in ("text", "list"):
        counts = counts.decode("ascii")
    rle = {"size": [height + wrong, width], "counts": counts}
    if wrong:
        with pytest.raises(ValueError, match="run lengths"):
            parse_segmentation(rle)
        return
    mask = parse_segmentation([rle] if form == "list" else rle)
    assert mask.size == (height, width)
    np.testing.assert_array_equal(mask.decode(height, width).numpy(), pixels)
    with pytest.raises(ValueError, match="its image"):
        mask.decode(height + 1, width)


@few(300)
@given(expression=anything_text, most=st.integers(1, 5))
def test_any_text_has_words_or_is_refused(expression: str, most: int) -> None:
    vocabulary = Vocabulary([*Vocabulary.SPECIAL, "a", ","])
    try:
        tokens = tokenize(expression)
    except ValueError:
        assert not re.search(r"\w", unicodedata.normalize("NFC", expression))
        with pytest.raises(ValueError, match="at least one word"):
            vocabulary.encode(expression)
        return
    assert tokens
    assert all(token and token == token.strip() for token in tokens)
    numbers = vocabulary.encode(expression, most)
    assert len(numbers) == min(most, len(tokens))
    assert all(0 <= number < len(vocabulary) for number in numbers)


@few(200)
@given(expressions=st.lists(anything_text | st.text(" \n\r\u2028\x85,.a", max_size=6), max_size=4))
@example(["a,\n,b"])
@example(["a,\r,b", "b"])
@example(["\ud800"])
def test_a_word_list_comes_back_from_its_file(
    tmp_path_factory: pytest.TempPathFactory, expressions: list[str]
) -> None:
    file = tmp_path_factory.getbasetemp() / "words.txt"
    usable = [expression for expression in expressions if _has_word(expression)]
    if not usable:
        return
    vocabulary = Vocabulary.from_expressions(usable)
    file.write_text("before")
    try:
        vocabulary.save(file)
    except ValueError:
        assert any("\ud800" <= character <= "\udfff" for said in usable for character in said)
        assert file.read_text() == "before"
        return
    again = Vocabulary.from_file(file)
    assert again.tokens == vocabulary.tokens
    for expression in usable:
        assert again.encode(expression) == vocabulary.encode(expression)
        assert Vocabulary.UNKNOWN_ID not in again.encode(expression)


def _has_word(expression: str) -> bool:
    try:
        return bool(tokenize(expression))
    except ValueError:
        return False


@few(100)
@given(said=anything_text, protocol=st.sampled_from([0, 2, 4]), escaped=st.booleans())
def test_expressions_come_through_files_unchanged(
    sound: ReferLayout, said: str, protocol: int, escaped: bool
) -> None:
    record = pickle.loads(pickle.dumps(sound.references[0]))
    record["sentences"][0].update(sent=said, raw=said)
    as_pickle, as_json = sound.root / "one.p", sound.root / "one.json"
    as_pickle.write_bytes(pickle.dumps([record], protocol=protocol))
    text = json.dumps([record], ensure_ascii=escaped)
    as_json.write_bytes(text.encode("utf-8", "surrogatepass"))
    for file in (as_pickle, as_json):
        for writing in ("sent", "raw"):
            (reference,) = read_references(file, writing)
            assert reference.expressions[0][1] == said


def _write(root: Path, references: Any, instances: Any) -> None:
    (root / "refcoco" / FILES[0]).write_bytes(pickle.dumps(references, protocol=2))
    # As a file that was edited by hand, where any number may stand.
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        (root / "refcoco" / FILES[1]).write_text(json.dumps(instances))
    finally:
        sys.set_int_max_str_digits(limit)


def _put(whole: Any, path: tuple[Any, ...], new: Any, remove: bool) -> None:
    *way, last = path
    for step in way:
        try:
            whole = whole[step]
        except (KeyError, IndexError, TypeError):
            return  # the other change has taken it away
    if isinstance(whole, dict) and remove and len(path) > 2:
        whole.pop(last, None)
    elif isinstance(whole, dict) or (
        isinstance(whole, list) and isinstance(last, int) and last < len(whole)
    ):
        whole[last] = new


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(one) for key, one in value.items())
    if isinstance(value, list):
        return all(_is_json(one) for one in value)
    return value is None or isinstance(value, bool | int | float | str)
