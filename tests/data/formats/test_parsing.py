"""Checked access to the fields of records."""

from __future__ import annotations

import gc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cmsa_fast.data.formats import parsing

WHERE = (Path("file.json"), "record", 3)


@pytest.mark.parametrize("read", [parsing.integer, parsing.string, parsing.listing])
def test_missing_field_and_record_of_another_type(read: Any) -> None:
    with pytest.raises(ValueError, match=r"^file\.json: record 3 has no 'key'$"):
        read({"other": 1}, "key", WHERE)
    with pytest.raises(ValueError, match=r"^file\.json: record 3 is a value of type list where a"):
        read(["key"], "key", WHERE)


@pytest.mark.parametrize(
    ("read", "value", "result"),
    [
        (parsing.integer, 7, 7),
        (parsing.integer, "0038", 38),
        (parsing.integer, -(2**63) + 1, -(2**63) + 1),
        (parsing.integer, True, "of type bool as its 'key', not an integer"),
        (parsing.integer, 1.0, "of type float as its 'key', not an integer"),
        (parsing.integer, None, "of type NoneType as its 'key', not an integer"),
        (parsing.integer, "../9", "of type str as its 'key', not an integer"),
        (parsing.integer, "1" * 19, "of type str as its 'key', not an integer"),
        (parsing.integer, 2**63, "a number of more than 64 bits as its 'key'"),
        (parsing.string, "", ""),
        (parsing.string, b"man", "of type bytes as its 'key', not text"),
        (parsing.string, None, "of type NoneType as its 'key', not text"),
        (parsing.listing, [], []),
        (parsing.listing, "man", "of type str as its 'key', not a list"),
        (parsing.listing, (1, 2), "of type tuple as its 'key', not a list"),
    ],
)
def test_fields(read: Any, value: Any, result: Any) -> None:
    if isinstance(result, str) and result:
        with pytest.raises(ValueError, match=rf"^file\.json: record 3 has .*{result}$"):
            read({"key": value}, "key", WHERE)
    else:
        assert read({"key": value}, "key", WHERE) == result


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "of type bool"),
        (1101.0, "of type float"),
        ({"id": 1101}, "of type dict"),
        ([1101], "of type list"),
        (2**63, "a number of more than 64 bits"),
        ("1" * 201, "201 characters"),
    ],
)
def test_invalid_identifiers(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"record 3 has .*{message} as its 'id'"):
        parsing.identifier(value, "id", WHERE)
    assert parsing.identifier(38, "id", WHERE) == "38"
    assert parsing.identifier("38_1", "id", WHERE) == "38_1"


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ("man", "record 3 has .*str as its 'sentences', not a list"),
        (["man"], "record 3 sentence 0 is a value of type str where a dictionary"),
        ([{"sent": "man"}], "record 3 sentence 0 has no 'sent_id'"),
        ([{"sent": "man", "sent_id": 1}, {"sent_id": 2}], "record 3 sentence 1 has no 'sent'"),
        ([{"sent": None, "sent_id": 1}], "sentence 0 has .*NoneType as its 'sent', not text"),
    ],
)
def test_damaged_sentences(sentences: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsing.read_expressions({"sentences": sentences}, "sent", WHERE)


@pytest.mark.parametrize("content", [b"", b'{"a": [', b"\xff\xfe\xfa", b"[" * 200_000])
def test_file_that_is_not_json(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.json is not a JSON file"):
        parsing.load_json(file)


@pytest.mark.parametrize("was_on", [True, False])
def test_garbage_collector_is_left_as_it_was(was_on: bool) -> None:
    (gc.enable if was_on else gc.disable)()
    try:
        with suppress(KeyError), parsing.paused_collection():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == was_on
    finally:
        gc.enable()
