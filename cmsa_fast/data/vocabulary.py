"""Splits expressions into words and maps words to ids."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

_logger = logging.getLogger(__name__)

_SEPARATORS = re.compile(r"(\W+)")
_WORD_CHARACTER = re.compile(r"\w")
# A line break inside a token would split its line in a word list.
_LINE_BREAKS = str.maketrans("\r\n", "  ")


def tokenize(expression: str) -> list[str]:
    """Splits an expression into lower-case words and punctuation.

    The rule is that of the published CMSA code: split at runs of characters other than letters, digits and
    underscores, keep these runs (punctuation is a word), remove whitespace, remove a final ".". A run of
    several marks is one token (`"),"`).

    The published code keeps the whitespace around a punctuation mark, but strips it from the lines of its word
    lists, so that a mark next to a space is never found and becomes `<unk>`. Here it is stripped from both.
    This concerns only expressions with punctuation: none in RefCOCO and RefCOCO+, one in twelve in RefCOCOg.

    The expression is normalised to Unicode NFC first; otherwise a combining accent would split its word.

    Raises:
        TypeError: `expression` is not a string.
        ValueError: The expression has no word: it is empty, blank or ".".
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
    """An ordered word list; the id of a word is its position.

    Entries without a letter or digit may be blank or repeated, because the published G-Ref list has five blank
    lines and "." twice (it was written without the whitespace around its punctuation). A blank entry has an id
    that is never used; of repeated entries the last one is used, as in the published code.

    Args:
        tokens: The four special tokens, then the words.

    Raises:
        TypeError: `tokens` is a string, or an entry is not a string.
        ValueError: The special tokens are missing, or an entry with a letter or digit is repeated, or an entry
            starts or ends with whitespace.

    Attributes:
        PAD: Padding token, with the id `PAD_ID`.
        GO: Start of an expression; part of the published lists, never produced by `encode`.
        EOS: End of an expression; part of the published lists, never produced by `encode`.
        UNKNOWN: Token for all words that are not in the list, with the id `UNKNOWN_ID`.
        SPECIAL: These four tokens, the first entries of every list.
        tokens: The list.
    """

    PAD = "<pad>"
    GO = "<go>"
    EOS = "<eos>"
    UNKNOWN = "<unk>"
    SPECIAL = (PAD, GO, EOS, UNKNOWN)
    PAD_ID = SPECIAL.index(PAD)
    UNKNOWN_ID = SPECIAL.index(UNKNOWN)

    def __init__(self, tokens: Iterable[str]) -> None:
        if isinstance(tokens, str):
            raise TypeError("tokens must be a sequence of strings, but it is a str.")
        self.tokens: tuple[str, ...] = tuple(tokens)
        for index, token in enumerate(self.tokens):
            if not isinstance(token, str):
                raise TypeError(f"tokens must be strings, but entry {index} is a {type(token).__name__}.")
            if token != token.strip():
                raise ValueError(f"tokens must not start or end with whitespace, but entry {index} is {token!r}.")
        if self.tokens[: len(self.SPECIAL)] != self.SPECIAL:
            raise ValueError(
                f"tokens must start with {' '.join(self.SPECIAL)}, but they start with "
                f"{list(self.tokens[: len(self.SPECIAL)])}."
            )
        self._ids = {token: index for index, token in enumerate(self.tokens) if token}
        self._warned: set[str] = set()
        repeated = [token for token, count in Counter(self.tokens).items() if count > 1 and token]
        words = [token for token in repeated if _WORD_CHARACTER.search(token)]
        if words:
            raise ValueError(f"tokens must differ, but these repeat: {words[:10]}.")
        blank = self.tokens.count("")
        if repeated or blank:
            _logger.info(
                "The word list has %d blank entries, which are never used, and repeated punctuation %s, of which "
                "the last entry is used.",
                blank,
                repeated,
            )

    @classmethod
    def from_expressions(cls, expressions: Iterable[str]) -> Vocabulary:
        """Builds the list of all words in some expressions, by decreasing count, equal counts by code points.

        Raises:
            TypeError: `expressions` is a string, or an item is not a string.
            ValueError: There are no expressions, or one has no word.
        """
        if isinstance(expressions, str):
            raise TypeError("expressions must be a sequence of strings, but it is a str.")
        counts = Counter(token for expression in expressions for token in tokenize(expression))
        if not counts:
            raise ValueError("expressions must have at least one expression, but it is empty.")
        return cls([*cls.SPECIAL, *sorted(counts, key=lambda token: (-counts[token], token))])

    @classmethod
    def from_file(cls, path: str | Path) -> Vocabulary:
        """Reads a list with one token per line, such as the published ones, from a UTF-8 text file.

        The line number, counted from 0, is the id of the word. Whitespace around a token is removed.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is not UTF-8, or its lines are not a valid word list.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"path must be a word list, but there is no file {path}.")
        try:
            text = path.read_text(encoding="utf-8-sig", errors="surrogatepass")
        except UnicodeDecodeError as error:
            raise ValueError(f"The word list {path} must be UTF-8 text: {error}.") from error
        # str.splitlines would also split at characters that tokens may contain.
        lines = text.removesuffix("\n").split("\n")
        try:
            return cls(line.strip() for line in lines)
        except ValueError as error:
            raise ValueError(f"The file {path} is not a word list: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the list for `from_file`, one token per line; an existing file is replaced.

        Unpaired surrogates, which JSON and pickles can hold but UTF-8 cannot, are encoded like other characters.
        """
        text = "".join(f"{token}\n" for token in self.tokens)
        Path(path).write_bytes(text.encode("utf-8", "surrogatepass"))

    def __len__(self) -> int:
        """Number of entries including the special ones: the size of the embedding table."""
        return len(self.tokens)

    def encode(self, expression: str, max_words: int = 20) -> list[int]:
        """Maps an expression to word ids.

        The first `max_words` words are kept, as in the published code (20 words). The first truncated
        expression and the first unknown word are logged.

        Returns:
            1 to `max_words` ids in `[0, len(self))`, without padding.

        Raises:
            TypeError: `expression` is not a string.
            ValueError: `expression` has no word, or `max_words` is below 1.
        """
        if max_words < 1:
            raise ValueError(f"max_words must be at least 1, but it is {max_words}.")
        tokens = tokenize(expression)
        if len(tokens) > max_words:
            message = "An expression of %d words was truncated to %d: %r."
            self._warn_once(message, len(tokens), max_words, expression)
        tokens = tokens[:max_words]
        for token in tokens:
            if token not in self._ids:
                message = "The word %r is not in the word list; it is replaced by <unk>."
                self._warn_once(message, token)
        return self.ids(tokens)

    def ids(self, tokens: Iterable[str]) -> list[int]:
        """The ids of words as `tokenize` returns them; `UNKNOWN_ID` of those that are not in the list."""
        return [self._ids.get(token, self.UNKNOWN_ID) for token in tokens]

    def _warn_once(self, message: str, *arguments: object) -> None:
        if message not in self._warned:
            self._warned.add(message)
            _logger.warning(f"{message} Further cases are not logged.", *arguments)
