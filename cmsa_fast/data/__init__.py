"""Referring data sets, words and batches: everything that knows files."""

from .batch import Batch, Collate, PictureBatchSampler
from .flip import horizontal_flip, swap_left_right
from .images import read_image
from .refer import ReferDataset
from .sample import ReferringDataset, Sample
from .scenes import ScenesDataset
from .shuffled import ShuffledSentences
from .transforms import Letterbox
from .vocabulary import Vocabulary, tokenize

__all__ = [
    "Batch",
    "Collate",
    "Letterbox",
    "PictureBatchSampler",
    "ReferDataset",
    "ReferringDataset",
    "Sample",
    "ScenesDataset",
    "ShuffledSentences",
    "Vocabulary",
    "horizontal_flip",
    "read_image",
    "swap_left_right",
    "tokenize",
]
