"""The same pictures under other pictures' sentences: what a model finds that does not read."""

import logging
from dataclasses import replace

import numpy as np

from .sample import ReferringDataset, Sample

_LOG = logging.getLogger(__name__)


class ShuffledSentences:
    """A data set whose sentences have changed places among its pictures; images and masks stay.

    A model that reads does badly here. One that does as well as before found the objects without the words.
    Every sentence goes to another picture, unless one picture has more than half of all sentences: then as
    few as possible stay with it, and the log says how many. The kind of a sentence is left empty.
    """

    def __init__(self, dataset: ReferringDataset, seed: int = 0) -> None:
        """
        Args:
            dataset: with at least two pictures.
            seed: of the order.

        Raises:
            ValueError: there is one picture only.
        """
        images = np.asarray(dataset.image_ids())
        names, counts = np.unique(images, return_counts=True)
        if len(names) < 2:
            raise ValueError("dataset must have at least two pictures to shuffle sentences among.")
        self.dataset = dataset
        self._sentences = dataset.sentences()
        # Pictures in a random order, and sentences handed on by the longest run of one picture: where no picture
        # has more than half of the sentences, none keeps one of its own.
        order = np.random.default_rng(seed).permutation(len(names))
        rank = np.empty(len(names), dtype=int)
        rank[order] = np.arange(len(names))
        by_picture = np.argsort(rank[np.searchsorted(names, images)], kind="stable")
        self._source = np.empty(len(images), dtype=int)
        self._source[by_picture] = np.roll(by_picture, counts.max())
        kept = int((images[self._source] == images).sum())
        if kept:
            _LOG.warning(
                "%d of %d sentences stay with their picture when shuffled: it has more than half of them.",
                kept,
                len(images),
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sentence = self._sentences[self._source[index]]
        return replace(self.dataset[index], sentence=sentence, kind="")

    def sentences(self) -> list[str]:
        return [self._sentences[source] for source in self._source]

    def image_ids(self) -> list[int]:
        return self.dataset.image_ids()
