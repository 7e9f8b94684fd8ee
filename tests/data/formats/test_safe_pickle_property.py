"""Pickles with arbitrary content or damage are read or refused, within little memory."""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from support.strategies import few, pickle_junk  # noqa: E402

from cmsa_fast.data.formats.safe_pickle import loads_plain_pickle

pytestmark = pytest.mark.usefixtures("quiet_within_little_memory")


@pytest.mark.parametrize("protocol", [0, 1, 2, 5])
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
    [
        b"\x80\x02]r\xff\xff\xff\x7f.",
        b"\x80\x02]X\x01\0\0\0ar\0\0\0\x40a.",
        b"]p99999999999\n.",
        b"\x80\x02c_codecs\nencode\n0]r\xff\xff\xff\x7f.",
        b"c_codecs\nencode\n0]p99999999999\n.",
    ],
)
def test_pickle_that_would_take_all_memory(damage: bytes) -> None:
    with pytest.raises(ValueError, match="it is a damaged pickle: it numbers an object"):
        loads_plain_pickle(damage, "it")


@few(100)
@given(content=pickle_junk, protocol=st.sampled_from([0, 1, 2, 3, 4, 5]), shared=st.booleans())
def test_plain_pickles_are_read_unchanged(content: Any, protocol: int, shared: bool) -> None:
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
