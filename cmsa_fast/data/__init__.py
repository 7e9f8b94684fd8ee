"""Data sets of referring expressions, vocabularies and batches.

`load` opens a split of a data set on disk in one line; `open_split` does so for a `Source` and can collect
records that cannot be used. An item is a `Sample`: image, mask, expression and numbers. `Collate` makes a
`Batch` of samples.

    dataset = load("refer", "data", "train", name="refcoco+")
    vocabulary = Vocabulary.from_expressions(dataset.expressions())
    batch = Collate(vocabulary, size=320)([dataset[0], dataset[1]])

A data set is built from `Record`s: expressions that refer to the same objects of one image.
`RecordDataset` makes a data set of any records, `ScenesDataset` renders synthetic scenes and needs no files.
"""

from .batch import Batch, Collate
from .dataset import DatasetReport, RecordDataset, ShuffledExpressions, load, open_split
from .errors import ErrorCollector
from .images import read_image
from .sampler import ImageBatchSampler
from .scenes.dataset import ScenesDataset
from .source import Source, read_records
from .transforms import Letterbox
from .types import Record, ReferringDataset, Sample
from .vocabulary import Vocabulary, tokenize

__all__ = [
    "Batch",
    "Collate",
    "DatasetReport",
    "ErrorCollector",
    "ImageBatchSampler",
    "Letterbox",
    "Record",
    "RecordDataset",
    "ReferringDataset",
    "Sample",
    "ScenesDataset",
    "ShuffledExpressions",
    "Source",
    "Vocabulary",
    "load",
    "open_split",
    "read_image",
    "read_records",
    "tokenize",
]
