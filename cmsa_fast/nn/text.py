"""Word embeddings, random or from GloVe."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from ..kernels.validation import check_range

_logger = logging.getLogger(__name__)


class WordEmbedding(nn.Embedding):
    """A vector for each word of the vocabulary; the paper learns 1000 channels from random vectors.

    Weights are initialised uniformly in (-0.08, 0.08), as in the published code. CMSA normalises every vector to
    unit length, so only directions matter.
    """

    def __init__(self, words: int, channels: int = 1000) -> None:
        """
        Args:
            words: Size of the vocabulary.
            channels: Cl, channels of a word.

        Raises:
            ValueError: words or channels is below 1.
        """
        if words < 1 or channels < 1:
            raise ValueError(f"words and channels must be at least 1; got {words} and {channels}.")
        super().__init__(words, channels)

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -0.08, 0.08)

    def forward(self, input: Tensor) -> Tensor:
        """int64 [B, N] word ids -> [B, N, Cl].

        Raises:
            TypeError: The ids are not an int64 tensor.
            ValueError: The ids have another shape, or one is not in the vocabulary.
        """
        if not isinstance(input, Tensor) or input.dtype != torch.int64:
            kind = input.dtype if isinstance(input, Tensor) else type(input).__name__
            raise TypeError(f"words must be an int64 tensor of word ids; got {kind}.")
        if input.ndim != 2 or not input.shape[1]:
            raise ValueError(
                f"words must have shape [batch, words] with at least one word; got {list(input.shape)}."
            )
        check_range("words", input, self.num_embeddings)
        return super().forward(input)

    @classmethod
    def from_glove(cls, path: str | Path, tokens: Sequence[str]) -> Self:
        """Read the vectors of a vocabulary from a GloVe text file; words that it lacks keep random vectors.

        The number of words with a vector is logged.

        Args:
            path: Text file with a word and its numbers on each line, separated by single spaces.
            tokens: The vocabulary, in the order of its ids.

        Returns:
            An embedding of len(tokens) words with the channels of the file.

        Raises:
            FileNotFoundError: path does not exist.
            ValueError: tokens is empty, a line is malformed, or the file has no word of the vocabulary.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"path must be a GloVe text file such as glove.6B.300d.txt; {path} does not exist."
            )
        wanted = {token: index for index, token in enumerate(tokens)}
        vectors: dict[int, Tensor] = {}
        width = 0
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                word, *numbers = line.rstrip("\n").split(" ")
                if number == 1 and len(numbers) == 1:  # header of word2vec: words and channels
                    continue
                width = width or len(numbers)
                # Some tokens of the 840B release contain spaces: the vector is the last `width` numbers.
                if len(numbers) < width:
                    raise ValueError(
                        f"{path}, line {number}: expected a word and {width} numbers; got {len(numbers)} numbers."
                    )
                word = " ".join([word, *numbers[: len(numbers) - width]])
                index = wanted.get(word)
                if index is not None:
                    vectors[index] = _vector(numbers[len(numbers) - width :], path, number)
        if not vectors:
            raise ValueError(f"{path} has a vector for none of the {len(wanted)} words in tokens.")
        _logger.info("%s: vectors for %d of %d words.", path.name, len(vectors), len(wanted))
        table = cls(len(tokens), width)
        with torch.no_grad():
            for index, vector in vectors.items():
                table.weight[index] = vector
        return table


def _vector(numbers: list[str], path: Path, line: int) -> Tensor:
    try:
        return torch.tensor([float(number) for number in numbers])
    except ValueError:
        raise ValueError(f"{path}, line {line}: the vector has an entry that is not a number.") from None
