"""Tests of `tokenize` and `Vocabulary`."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cmsa_fast.data.vocabulary import Vocabulary, tokenize

SPECIAL = ["<pad>", "<go>", "<eos>", "<unk>"]


@pytest.mark.parametrize(
    ("expression", "tokens"),
    [
        ("Man", ["man"]),
        ("the LEFT man", ["the", "left", "man"]),
        ("  spaced\tout \n words ", ["spaced", "out", "words"]),
        ("the man.", ["the", "man"]),
        ("the man .", ["the", "man"]),
        ("mr. smith.", ["mr", ".", "smith"]),
        ("wait...", ["wait", "..."]),
        ("left-most dog", ["left", "-", "most", "dog"]),
        ("a cat , a dog", ["a", "cat", ",", "a", "dog"]),
        ("the man's hat", ["the", "man", "'", "s", "hat"]),
        ('he said "(no)" twice', ["he", "said", '"(', "no", ')"', "twice"]),
        ("snake_case 3rd", ["snake_case", "3rd"]),
        ("the man!", ["the", "man", "!"]),
        ("?", ["?"]),
        ("Älteres Café, 猫", ["älteres", "café", ",", "猫"]),
        ("СЛЕВА", ["слева"]),
        ("cafe\u0301", ["caf\u00e9"]),  # normalised to NFC
    ],
)
def test_tokens(expression: str, tokens: list[str]) -> None:
    assert tokenize(expression) == tokens


@pytest.mark.parametrize("expression", ["", " ", "\n\t", ".", " . "])
def test_expression_without_words_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="expression must have at least one word"):
        tokenize(expression)


@pytest.mark.parametrize("expression", [None, b"man", ["man"]])
def test_expression_must_be_a_string(expression: object) -> None:
    with pytest.raises(TypeError, match="expression must be a str"):
        tokenize(expression)  # type: ignore[arg-type]


def test_words_are_sorted_by_count_then_code_points() -> None:
    vocabulary = Vocabulary.from_expressions(["the left man", "the zebra", "a man, left"])
    assert vocabulary.tokens == (*SPECIAL, "left", "man", "the", ",", "a", "zebra")
    assert len(vocabulary) == 10


def test_encode_returns_positions_and_special_tokens_are_unknown() -> None:
    vocabulary = Vocabulary([*SPECIAL, "man", "left", ","])
    assert vocabulary.encode("Left, man.") == [5, 6, 4]
    assert set(vocabulary.encode("<pad> <eos>")) == {vocabulary.UNKNOWN_ID}


def test_truncation_keeps_the_first_words_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    vocabulary = Vocabulary([*SPECIAL, "a", "b", "c"])
    with caplog.at_level(logging.WARNING):
        assert vocabulary.encode("a b c", max_words=2) == [4, 5]
        assert vocabulary.encode("c b a", max_words=2) == [6, 5]
        assert vocabulary.encode("a b c", max_words=3) == [4, 5, 6]
    assert [record.getMessage() for record in caplog.records] == [
        "An expression of 3 words was truncated to 2: 'a b c'. Further cases are not logged."
    ]


def test_twenty_words_are_kept_by_default() -> None:
    vocabulary = Vocabulary.from_expressions(["word"])
    assert vocabulary.encode(" ".join(["word"] * 23)) == [4] * 20
    assert vocabulary.encode(" ".join(["word"] * 20)) == [4] * 20


def test_unknown_words_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    vocabulary = Vocabulary([*SPECIAL, "man"])
    with caplog.at_level(logging.WARNING):
        assert vocabulary.encode("old man hat") == [3, 4, 3]
        assert vocabulary.encode("shoe") == [3]
    assert len(caplog.records) == 1
    assert "'old'" in caplog.text


@pytest.mark.parametrize("max_words", [0, -1])
def test_max_words_must_be_positive(max_words: int) -> None:
    with pytest.raises(ValueError, match="max_words must be at least 1"):
        Vocabulary(SPECIAL).encode("man", max_words)


@pytest.mark.parametrize("expressions", [[], ["."], ["man", ""]])
def test_list_without_words_is_refused(expressions: list[str]) -> None:
    with pytest.raises(ValueError, match="must have at least one"):
        Vocabulary.from_expressions(expressions)


def test_string_instead_of_a_sequence_is_refused() -> None:
    with pytest.raises(TypeError, match="it is a str"):
        Vocabulary.from_expressions("left man")
    with pytest.raises(TypeError, match="it is a str"):
        Vocabulary("left man")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False], ids=["newline at the end", "none"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_line_endings(tmp_path: Path, ending: str, last: bool, mark: str) -> None:
    text = mark + ending.join([*SPECIAL, "man "]) + (ending if last else "")
    (tmp_path / "words.txt").write_bytes(text.encode())
    assert Vocabulary.from_file(tmp_path / "words.txt").tokens == (*SPECIAL, "man")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*SPECIAL, "man", "hat", "man"], r"repeat: \['man'\]"),
        ([*SPECIAL, "<pad>"], r"repeat: \['<pad>'\]"),
        (["man", "hat"], "must start with <pad>"),
        (SPECIAL[:3], "must start with <pad>"),
        (["<unk>", "<pad>", "<go>", "<eos>", "man"], "must start with <pad>"),
        ([], "must start with <pad>"),
    ],
)
def test_invalid_word_lists_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message) as caught:
        Vocabulary.from_file(path)
    assert str(path) in str(caught.value)


def test_missing_and_non_utf8_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        Vocabulary.from_file(tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes("\n".join([*SPECIAL, "café"]).encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        Vocabulary.from_file(tmp_path / "latin.txt")


@pytest.mark.parametrize(
    ("token", "error", "message"),
    [(7, TypeError, "entry 4 is a int"), (" man", ValueError, "whitespace"), ("a\n", ValueError, "whitespace")],
)
def test_invalid_entries_are_refused(token: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Vocabulary([*SPECIAL, token])  # type: ignore[list-item]


def test_blank_and_repeated_entries_keep_their_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\n".join([*SPECIAL, ".", "", "man", "", ".", "hat"]) + "\n")
    with caplog.at_level(logging.INFO):
        vocabulary = Vocabulary.from_file(path)
    assert len(vocabulary) == 10
    assert vocabulary.encode("man . hat") == [6, 8, 9]
    assert "2 blank entries" in caplog.text
    vocabulary.save(tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_text() == path.read_text()


@pytest.mark.parametrize(
    ("name", "size", "ids"),
    # Line numbers, counted from 0, in the published files; of the two "." of G-Ref the last one is used.
    [("Gref", 12112, [4703, 6108, 7909]), ("referit", 8803, [4, 400, 4336])],
)
def test_published_lists(real: Path, name: str, size: int, ids: list[int]) -> None:
    path = real / "words" / f"vocabulary_{name}.txt"
    vocabulary = Vocabulary.from_file(path)
    lines = path.read_text(encoding="utf-8").split("\n")[:size]
    assert len(vocabulary) == len(lines) == size
    assert list(vocabulary.tokens) == lines
    assert vocabulary.tokens[:4] == Vocabulary.SPECIAL
    assert vocabulary.encode("a . b") == ids
    words = [line for line in lines[4:] if line.isalpha()]
    assert len(words) > 8000
    assert all(lines[vocabulary.encode(word)[0]] == word for word in words)
