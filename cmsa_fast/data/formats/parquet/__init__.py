"""RefCOCO, RefCOCO+ and RefCOCOg in the parquet forms that Hugging Face's repositories have.

The form is recognised by the columns. Files are read from disk; nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...errors import ErrorCollector
from ...source import Reading, Source
from .benchmark import read_benchmark
from .files import Shard, find_shards
from .others import read_mixed, read_reannotated
from .refcoco import read_refcoco
from .tables import column_names

_Read = Callable[[Source, list[Shard], str | None, ErrorCollector], Reading]


@dataclass(frozen=True)
class _Form:
    """A form: the repositories that have it, the columns that tell it, its reader."""

    repositories: str
    columns: tuple[str, ...]
    read: _Read


_FORMS = (
    _Form(
        "jxu124/refcoco, refcocoplus, refcocog",
        ("ref_id", "ann_id", "image_id", "split", "sentences", "raw_anns", "raw_image_info"),
        read_refcoco,
    ),
    _Form("jxu124/refcoco-benchmark", ("image", "image_info", "ref_list"), read_benchmark),
    _Form("moondream/refcoco-m", ("image", "image_id", "samples"), read_reannotated),
    _Form(
        "lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg",
        ("question_id", "image", "answer", "segmentation", "file_name"),
        read_mixed,
    ),
)


def read_parquet(source: Source, split: str | None, errors: ErrorCollector) -> Reading:
    """Reads a data set in one of the parquet forms (`cmsa_fast.data.source.read_records`).

    The root is the repository's folder, its folder `data`, or one file; or a folder of several
    repositories, one of which `source.name` names. Known forms:

    - jxu124/refcoco, refcocoplus, refcocog: a row for each reference, without pixels; the images
      are COCO's. Splits go by their published names and by the files' own ("validation" is the
      published val; the "test" of RefCOCO and RefCOCO+ is the published testA).
    - jxu124/refcoco-benchmark: a row for each image, with its pixels. Its splits are called
      "refcoco_unc_val" and so on; with `source.name` ("refcoco") and perhaps `source.split_by`
      "val" will do.
    - moondream/refcoco-m: new masks for a part of RefCOCO's val.
    - lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg: refused without `source.allow_mixed_splits`.

    Args:
        source: The data set.
        split: The split. None: all splits.
        problems: Takes the records that cannot be used.

    Returns:
        The records.

    Raises:
        FileNotFoundError: A folder or a part of a split is missing.
        ValueError: The columns are those of no known form, the split is not there, a file is
            damaged, or the form is refused.
        ImportError: pyarrow is not installed.
    """
    shards = find_shards(source)
    columns = column_names(shards[0].path)
    for form in _FORMS:
        if set(form.columns) <= set(columns):
            return form.read(source, shards, split, errors)
    known = "; ".join(f"{form.repositories}: {', '.join(form.columns)}" for form in _FORMS)
    raise ValueError(
        f"{shards[0].path} has the columns {', '.join(columns)}, which are those of no known form. "
        f"Known are {known}"
    )
