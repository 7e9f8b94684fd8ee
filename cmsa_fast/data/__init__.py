"""Referring data sets, words and batches: everything that knows files.

A data set on disk is a `Source`; `open_split` opens a split of it with one item per expression, whatever
the form of its files. An item is a `Sample`: image, mask, expression and numbers. `Collate` makes a
`Batch` of samples.

    source = Source(form="refer", root=Path("data"), name="refcoco+")
    problems = ErrorCollector(strict=False)
    dataset = open_split(source, "train", for_training=True, problems=problems)
    vocabulary = Vocabulary.from_expressions(dataset.expressions())
    batch = Collate(vocabulary, size=320)([dataset[0], dataset[1]])

What cannot be used is left out and told in `problems.messages`; without `problems`, or with
`ErrorCollector(strict=True)`, the first such record is an error. Behind every data set is a list of
`Record`: expressions that name the same objects in one image. `RecordDataset` makes a data set of
records of one's own, `ScenesDataset` draws scenes and needs no files.
"""

from .batch import Batch, Collate
from .dataset import DatasetReport, RecordDataset
from .errors import ErrorCollector
from .formats.refer import ReferDataset
from .images import read_image
from .sample import ReferringDataset, Sample
from .sampler import ImageBatchSampler
from .scenes.dataset import ScenesDataset
from .shuffled import ShuffledExpressions
from .source import Source, open_split, read_records
from .transforms import Letterbox
from .types import Record
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
    "ReferDataset",
    "ReferringDataset",
    "Sample",
    "ScenesDataset",
    "ShuffledExpressions",
    "Source",
    "Vocabulary",
    "open_split",
    "read_image",
    "read_records",
    "tokenize",
]
