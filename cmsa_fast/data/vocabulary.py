"""Expressions to words, words to numbers."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

_SEPARATORS = re.compile(r"(\W+)")
_WORD_CHARACTER = re.compile(r"\w")
# Inside a token they would split its line of a word list.
_LINE_BREAKS = str.maketrans("\r\n", "  ")


def tokenize(expression: str) -> list[str]:
    """Split an expression into lower-case words and punctuation.

    The rule of the published CMSA code: split at runs of characters that are neither letters, digits
    nor underscores, keep those runs (punctuation is a word), drop blanks, drop a final ".". A run of
    several marks stays one token (`"),"`).

    In one point the published code differs: it keeps the blanks around a punctuation mark, yet strips
    them from the lines of its word lists, so that a mark with a blank beside it is never found and
    becomes `<unk>`. Here the blanks go from both. Only expressions with punctuation are concerned: none
    in RefCOCO and RefCOCO+, one in twelve in RefCOCOg.

    The expression is first brought to Unicode's composed form (NFC); otherwise an accent written as a
    character of its own would split its word.

    Args:
        expression: The expression as written.

    Returns:
        At least one token, none of them blank.

    Raises:
        TypeError: `expression` is no string.
        ValueError: Nothing is left of the expression: it is empty, blank or ".".
    """
    if not isinstance(expression, str):
        raise TypeError(f"expression must be a str, but it is a {type(expression).__name__}.")
    pieces = _SEPARATORS.split(unicodedata.normalize("NFC", expression.translate(_LINE_BREAKS)))
    tokens = [token for piece in pieces if (token := piece.strip().lower())]
    if tokens and tokens[-1] == ".":
        tokens.pop()
    if not tokens:
        raise ValueError(f"expression must have at least one word, but it is {expression!r}.")
    return tokens


class Vocabulary:
    """An ordered word list: a word's place in it is its number.

    Attributes:
        PAD: The token that fills expressions up; number `PAD_ID`.
        GO: Start of an expression; in the published lists, never produced by `encode`.
        EOS: End of an expression; in the published lists, never produced by `encode`.
        UNKNOWN: The token for every word not in the list; number `UNKNOWN_ID`.
        SPECIAL: These four, which open every list in this order.
        tokens: The list.
        truncated_expressions: How many expressions `encode` has cut to `max_words` so far.
        unknown_words: How many words `encode` has replaced by `<unk>` so far. Both counts are this
            object's own: a copy in a data-loading worker process counts for itself.
    """

    PAD = "<pad>"
    GO = "<go>"
    EOS = "<eos>"
    UNKNOWN = "<unk>"
    SPECIAL = (PAD, GO, EOS, UNKNOWN)
    PAD_ID = SPECIAL.index(PAD)
    UNKNOWN_ID = SPECIAL.index(UNKNOWN)

    def __init__(self, tokens: Iterable[str]) -> None:
        """Take a word list as it is.

        Entries without a letter or digit may be blank or repeat, because the published G-Ref list has
        five blank lines and "." twice (the blanks around its punctuation were lost when it was
        written). A blank entry keeps its number and is never used; of a repeated one the last counts,
        as in the published code. Such entries are logged.

        Args:
            tokens: The four special tokens, then the words.

        Raises:
            TypeError: `tokens` is one string, or an entry is no string.
            ValueError: The special tokens are missing, or an entry with a letter or digit repeats or
                has blanks around it.
        """
        if isinstance(tokens, str):
            raise TypeError("tokens must be a sequence of strings, but it is one str.")
        self.tokens: tuple[str, ...] = tuple(tokens)
        for index, token in enumerate(self.tokens):
            if not isinstance(token, str):
                raise TypeError(
                    f"tokens must be strings, but entry {index} is a {type(token).__name__}."
                )
            if token != token.strip():
                raise ValueError(
                    f"tokens must have no blanks around them, but entry {index} is {token!r}."
                )
        if self.tokens[: len(self.SPECIAL)] != self.SPECIAL:
            raise ValueError(
                f"tokens must start with {' '.join(self.SPECIAL)}, but they start with "
                f"{list(self.tokens[: len(self.SPECIAL)])}."
            )
        self._ids = {token: index for index, token in enumerate(self.tokens) if token}
        self._check_repetition()
        self.truncated_expressions = 0
        self.unknown_words = 0

    def _check_repetition(self) -> None:
        repeated = [token for token, count in Counter(self.tokens).items() if count > 1 and token]
        words = [token for token in repeated if _WORD_CHARACTER.search(token)]
        if words:
            raise ValueError(f"tokens must differ, but these repeat: {words[:10]}.")
        blank = self.tokens.count("")
        if repeated or blank:
            logger.info(
                "The word list has %d blank entries, which are never used, and repeats the "
                "punctuation %s, of which the last entry counts.",
                blank,
                repeated,
            )

    @classmethod
    def from_expressions(cls, expressions: Iterable[str]) -> Vocabulary:
        """Build the list of all words in some expressions.

        Args:
            expressions: Expressions as written; each must have a word.

        Returns:
            The special tokens, then the words by falling count, equal counts by alphabet (code
            points).

        Raises:
            TypeError: `expressions` is one string, or an item is no string.
            ValueError: There are no expressions, or one has no word.
        """
        if isinstance(expressions, str):
            raise TypeError("expressions must be a sequence of strings, but it is one str.")
        counts = Counter(token for expression in expressions for token in tokenize(expression))
        if not counts:
            raise ValueError("expressions must have at least one expression, but there is none.")
        return cls([*cls.SPECIAL, *sorted(counts, key=lambda token: (-counts[token], token))])

    @classmethod
    def from_file(cls, path: str | Path) -> Vocabulary:
        """Read a list with one token a line, such as the published ones.

        Args:
            path: A UTF-8 text file; the line number, counted from 0, is the word's number. Blanks
                around a token are cut off.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not UTF-8, or its tokens are not a word list (see `Vocabulary`).
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"path must name a word list, but there is no file {path}.")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"The word list {path} must be UTF-8 text: {error}.") from error
        # str.splitlines would also split at characters that may stand in a token.
        lines = text.removesuffix("\n").split("\n")
        try:
            return cls(line.strip() for line in lines)
        except ValueError as error:
            raise ValueError(f"The file {path} is no word list: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the list, one token a line, so that `from_file` reads it back.

        Args:
            path: The file to write; an existing one is replaced.

        Raises:
            ValueError: A token has a character that UTF-8 cannot write; the file stays as it was.
        """
        text = "".join(f"{token}\n" for token in self.tokens)
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"The word list cannot be written to {path}: {error}.") from error
        Path(path).write_bytes(data)

    def __len__(self) -> int:
        """Number of entries, the special ones included: the size of the embedding table."""
        return len(self.tokens)

    def encode(self, expression: str, max_words: int = 20) -> list[int]:
        """The numbers of an expression's words.

        Of a longer expression the first `max_words` words are kept, as in the published code (which
        has 20). That and unknown words are counted, and logged the first time each happens.

        Args:
            expression: The expression as written.
            max_words: Most words to keep, at least 1.

        Returns:
            1 to `max_words` numbers in `[0, len(self))`, without padding.

        Raises:
            TypeError: `expression` is no string.
            ValueError: `expression` has no word, or `max_words` is below 1.
        """
        if max_words < 1:
            raise ValueError(f"max_words must be at least 1, but it is {max_words}.")
        tokens = tokenize(expression)
        if len(tokens) > max_words:
            self._note_truncation(expression, len(tokens), max_words)
        ids = []
        for token in tokens[:max_words]:
            index = self._ids.get(token)
            if index is None:
                self._note_unknown(token)
                index = self.UNKNOWN_ID
            ids.append(index)
        return ids

    def _note_truncation(self, expression: str, words: int, max_words: int) -> None:
        if self.truncated_expressions == 0:
            logger.warning(
                "An expression of %d words was cut to its first %d: %r. Further ones are only counted.",
                words,
                max_words,
                expression,
            )
        self.truncated_expressions += 1

    def _note_unknown(self, token: str) -> None:
        if self.unknown_words == 0:
            logger.warning(
                "The word %r is not in the word list and became %s. Further ones are only counted.",
                token,
                self.UNKNOWN,
            )
        self.unknown_words += 1
