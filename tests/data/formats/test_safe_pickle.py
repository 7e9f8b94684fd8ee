"""Pickles of Python 2 and 3 are read; those that name functions or classes are refused."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from cmsa_fast.data.formats.safe_pickle import load_plain_pickle, loads_plain_pickle

RECORD = {"sent": "café au lait", "ids": [1, 2, 3], "size": (4, 5), "score": 0.5, "none": None}

# {"sent": <str "café au lait">, "ids": [1, 2]} in the opcodes of Python 2.7's byte strings.
PYTHON2_UTF8 = [
    b"(dp0\nS'sent'\np1\nS'caf\\xc3\\xa9 au lait'\np2\nsS'ids'\np3\n(lp4\nI1\naI2\nas.",
    b"}q\x00(U\x04sentq\x01U\x0dcaf\xc3\xa9 au laitq\x02U\x03idsq\x03]q\x04(K\x01K\x02eu.",
    b"\x80\x02}q\x00(U\x04sentq\x01U\x0dcaf\xc3\xa9 au laitq\x02U\x03idsq\x03]q\x04(K\x01K\x02eu.",
]
PYTHON2_LATIN1 = b"\x80\x02}q\x00U\x04sentq\x01U\x04caf\xe9q\x02s."
PYTHON2_UNICODE = [
    b"(dp0\nS'sent'\np1\nVcaf\xe9\np2\ns.",
    b"\x80\x02}q\x00U\x04sentq\x01X\x05\x00\x00\x00caf\xc3\xa9q\x02s.",
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_content_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "records.p"
    content = [RECORD, RECORD, b"", b"abc", bytes(range(256)) * 2]
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    assert load_plain_pickle(file) == content


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        *((data, {"sent": "café au lait", "ids": [1, 2]}) for data in PYTHON2_UTF8),
        *((data, {"sent": "café"}) for data in PYTHON2_UNICODE),
    ],
)
def test_python2_byte_strings_are_utf8(data: bytes, expected: object) -> None:
    assert loads_plain_pickle(data, "old.p") == expected


def test_byte_strings_that_are_not_utf8_are_latin1_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cmsa_fast.data.formats.safe_pickle"):
        assert loads_plain_pickle(PYTHON2_LATIN1, "old.p") == {"sent": "café"}
    assert "old.p" in caplog.text
    assert "Latin-1" in caplog.text


NUMBERS = [np.int64(-5), np.uint8(200), np.int32(7), np.float32(0.5), np.float64(2.5), np.bool_(True)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpy_numbers_become_python_numbers(protocol: int, module: bytes) -> None:
    data = pickle.dumps(NUMBERS, protocol=protocol)
    for written in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        if protocol < 4:  # later protocols write the length of the name
            data = data.replace(written + b"\n", module + b"\n")
    loaded = loads_plain_pickle(data, "numbers.p")
    assert loaded == [-5, 200, 7, 0.5, 2.5, True]
    assert [type(one) for one in loaded] == [int, int, int, float, float, bool]


def test_numpy_numbers_of_big_endian_machines_and_of_python2() -> None:
    data = pickle.dumps(np.int32(258), protocol=2).replace(b"X\x01\0\0\0<", b"X\x01\0\0\0>")
    assert loads_plain_pickle(data, "big.p") == int.from_bytes((258).to_bytes(4, "little"), "big")
    python2 = (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'i4'\nI0\nI1\ntR"
        b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbS'\\x02\\x01\\x00\\x00'\ntR."
    )
    assert loads_plain_pickle(python2, "old.p") == 258


DTYPE = b"cnumpy\ndtype\n(V%s\nI00\nI01\ntR"
STATE = b"(I3\nV<\nNNNI-1\nI-1\nI0\ntb"
SCALAR = b"cnumpy._core.multiarray\nscalar\n("


@pytest.mark.parametrize(
    "hostile",
    [
        DTYPE % b"O" + b".",
        DTYPE % b"V1000000000" + b".",
        DTYPE % b"i8" + b"(I3\nV<\n(VxtNNI-1\nI-1\nI0\ntb.",  # with fields
        DTYPE % b"i8" + b"Vx\nb.",
        SCALAR + DTYPE % b"i8" + STATE + b"Vabc\ntR.",  # of another size
        SCALAR + b"Vi8\nV12345678\ntR.",
        b"c_codecs\nencode\n(Vabc\nVzlib\ntR.",
        b"c_codecs\nencode\n(V\\u4e00\nVlatin1\ntR.",
        b"c__builtin__\nbytes\n(I1000000000\ntR.",
        b"c_codecs\nencode\n(N(dV__call__\nNstb.",  # sets an attribute
        b"c_codecs\nencode\n(dV__call__\nNsb.",
        b"c_codecs\nencode\n)\x81.",
        b"cnumpy\nndarray\n.",
        b"cnumpy._core.multiarray\n_reconstruct\n.",
        b"c_codecs\ndecode\n.",
        b"cbuiltins\nbytearray\n.",
        # Every operation that names an object.
        b"cbuiltins\neval\n(S'1+1'\ntR.",  # GLOBAL and REDUCE
        b"(S'true'\nios\nsystem\n.",  # INST
        b"\x80\x02U\x01xQ.",  # BINPERSID
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
    ],
)
def test_other_objects_and_misuse_of_the_permitted_ones_are_refused(hostile: bytes) -> None:
    with pytest.raises(ValueError, match="hostile.p"):
        loads_plain_pickle(hostile, "hostile.p")
    assert loads_plain_pickle(pickle.dumps([b"a", np.int8(1)], 2), "sound.p") == [b"a", 1]


class _Shell:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_that_calls_the_shell_runs_nothing(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "witness"
    hostile = pickle.dumps([_Shell(f"touch {witness}")], protocol=protocol)
    file = tmp_path / "refs(unc).p"
    file.write_bytes(hostile)
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p.*system"):
        load_plain_pickle(file)
    assert not witness.exists()
    pickle.loads(hostile)
    assert witness.exists(), "the pickle must be one that would have run"


@pytest.mark.parametrize(
    "garbage",
    [
        b"<!DOCTYPE html><html><title>404 Not Found</title></html>",
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
        b"\x80\x05\x96" + b"\xff" * 8 + b".",  # a byte array of 2**64 - 1 bytes
        b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",  # a string of 2**63 - 1 bytes
        b"\x80\x7f.",
        b"a.",
    ],
)
def test_files_that_are_no_pickle(garbage: bytes) -> None:
    with pytest.raises(ValueError, match="page.p"):
        loads_plain_pickle(garbage, "page.p")


def test_deep_nesting_is_read(tmp_path: Path) -> None:
    depth = 20_011
    nested = loads_plain_pickle(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".", "deep.p")
    measured = 0
    while nested is not None:
        measured += 1
        nested = nested[0] if nested else None
    assert measured == depth


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.p"):
        load_plain_pickle(tmp_path / "absent.p")
