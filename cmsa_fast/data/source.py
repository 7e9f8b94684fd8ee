"""`Source` names a data set on disk; `read_records` reads it with the reader of its form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

from .errors import ErrorCollector
from .types import Record

Form = Literal["refer", "grefcoco", "anns-masks", "parquet", "referit", "manifest", "converted"]
Text = Literal["sent", "raw"]

# The reader of each form: module of cmsa_fast.data.formats, function.
_READERS: Mapping[Form, tuple[str, str]] = {
    "refer": ("refer", "read_refer"),
    "grefcoco": ("grefcoco", "read_grefcoco"),
    "anns-masks": ("cris", "read_anns_masks"),
    "parquet": ("parquet.reader", "read_parquet"),
    "referit": ("referit", "read_referit"),
    "manifest": ("manifest", "read_manifest"),
    "converted": ("converted", "read_converted"),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set on disk.

    Attributes:
        form: Layout of the files.
        root: Folder (or file) that holds the data set; the reader of the form describes its contents.
        name: Which data set of the root; empty: the usual one of the form.
        split_by: Author of the split ("unc", "umd", "google", "berkeley"); empty: the usual one. Only
            the forms of REFER and gRefCOCO have several.
        text: Which version of the expressions to use where there are two: "sent" is normalised and
            lower case, "raw" is as typed by the annotator.
        image_folder: Folder of the images if it is none of the usual ones.
    """

    form: Form
    root: Path
    name: str = ""
    split_by: str = ""
    text: Text = "sent"
    image_folder: Path | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown form or text version."""
        for name, value, known in (("form", self.form, get_args(Form)), ("text", self.text, get_args(Text))):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


@dataclass(frozen=True)
class Reading:
    """The result of a reader."""

    records: Sequence[Record]  # records of the split, or of all splits, in the order of the files
    title: str  # name of the data set for messages, such as "refcoco (unc)"
    # Number of expressions of each published split, as far as known.
    published_expressions: Mapping[str, int] = field(default_factory=dict)


def read_records(source: Source, split: str | None, errors: ErrorCollector) -> Reading:
    """Reads the records of a split.

    Args:
        source: The data set.
        split: Name of the split in this form. None: all splits.
        errors: Collects the records that cannot be used.

    Returns:
        At least one record.

    Raises:
        FileNotFoundError: A file or folder is missing; the message says what belongs where.
        ValueError: The source names a data set or split that does not exist (the message lists those
            that do), no record is usable, or a file is damaged as a whole.
        ImportError: The form needs a package that is not installed; the message names it.
    """
    module, function = _READERS[source.form]
    read: Callable[[Source, str | None, ErrorCollector], Reading]
    read = getattr(import_module(f".formats.{module}", __package__), function)
    before = errors.count
    try:
        reading = read(source, split, errors)
        if not reading.records:
            part = "" if split is None else f" of split {split!r}"
            raise ValueError(f"{reading.title} has no record{part}")
    except ValueError as error:
        if not (lost := errors.count - before):
            raise
        raise ValueError(
            f"{error}; {lost} records could not be used, the first: {errors.messages[before]}"
        ) from error
    return reading
