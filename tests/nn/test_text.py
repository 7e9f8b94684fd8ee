"""Word embeddings: ids and GloVe files."""

import gzip
from pathlib import Path

import pytest
import torch

from cmsa_fast.nn import WordEmbedding


def test_ids_are_checked() -> None:
    table = WordEmbedding(5, 3)
    assert table(torch.tensor([[0, 4]])).shape == (1, 2, 3)
    with pytest.raises(ValueError, match=r"words must lie in 0\.\.4; got values from 5 to 5"):
        table(torch.tensor([[5]]))
    with pytest.raises(TypeError, match="int64"):
        table(torch.zeros(1, 2))
    for shape in ((2,), (2, 0)):
        with pytest.raises(ValueError, match=r"shape \[batch, words\] with at least one word; got"):
            table(torch.zeros(shape, dtype=torch.int64))


def test_glove_vectors_go_to_their_words(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text("red 1 2 3\n. . 7 8 9\nblue 4 5 6\n", encoding="utf-8")
    table = WordEmbedding.from_glove(path, ["<pad>", "blue", "red", ". ."])
    assert table.weight[1].tolist() == [4, 5, 6]
    assert table.weight[2].tolist() == [1, 2, 3]
    assert table.weight[3].tolist() == [7, 8, 9]
    assert table.weight[0].abs().max() <= 0.08


@pytest.mark.parametrize(
    ("text", "message"),
    [("red 1 2\nblue 1\n", "line 2"), ("red 1 x\n", "not a number"), ("green 1 2\n", "none of")],
)
def test_damaged_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "glove.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        WordEmbedding.from_glove(path, ["red", "blue"])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="GloVe"):
        WordEmbedding.from_glove(tmp_path / "none.txt", ["red"])


def test_published_vectors_are_read(real: Path, tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_bytes(gzip.decompress((real / "words/glove.6B.100d.sample.txt.gz").read_bytes()))
    word, *numbers = path.read_text(encoding="utf-8").splitlines()[0].split(" ")
    table = WordEmbedding.from_glove(path, ["<pad>", word])
    assert table.weight[1].tolist() == pytest.approx([float(number) for number in numbers])
