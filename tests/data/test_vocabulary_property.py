"""Any text has words or is refused, and word lists survive their file."""

from __future__ import annotations

import re
import unicodedata

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import example, given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from support.strategies import anything_text, few  # noqa: E402

from cmsa_fast.data import Vocabulary, tokenize


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
    vocabulary.save(file)
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
