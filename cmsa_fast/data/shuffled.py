"""The same pictures under other pictures' sentences: what a model finds that does not read."""

from dataclasses import replace

import numpy as np

from .sample import ReferringDataset, Sample


class ShuffledSentences:
    """A data set whose sentences have changed places among its pictures; images and masks stay.

    A model that reads does badly here. One that does as well as before found the objects without the words.
    Every sentence goes to another picture, where the data set has more than one.
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

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return replace(self.dataset[index], sentence=self._sentences[self._source[index]])

    def sentences(self) -> list[str]:
        return [self._sentences[source] for source in self._source]

    def image_ids(self) -> list[int]:
        return self.dataset.image_ids()
