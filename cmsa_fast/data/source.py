"""Data sets of every form, opened by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

from .check.leakage import excluded_images
from .dataset import RecordDataset
from .errors import ErrorCollector
from .types import Record

Form = Literal["refer", "grefcoco", "anns-masks", "parquet", "referit", "converted"]
Text = Literal["sent", "raw"]

# One reader for each form: module of this package, function.
_READERS: Mapping[Form, tuple[str, str]] = {
    "refer": ("refer", "read_refer"),
    "grefcoco": ("grefcoco", "read_grefcoco"),
    "anns-masks": ("cris", "read_anns_masks"),
    "parquet": ("parquet", "read_parquet"),
    "referit": ("referit", "read_referit"),
    "converted": ("converted.reader", "read_converted"),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set on disk.

    Attributes:
        form: How its files are laid out.
        root: The folder that holds it; each reader says what it looks for there.
        name: Which data set of the root; empty: the form's usual one.
        split_by: Who made the split ("unc", "umd", "google", "berkeley"); empty: the usual one. Only
            the forms of REFER and gRefCOCO have several.
        text: Which writing of the expressions to give, where there are two: "sent" is cleaned and in
            lower case, "raw" as it was typed.
        image_folder: The folder of the images, where it is none of the usual ones.
        allow_mixed_splits: Read a copy known to mix the splits of several data sets all the same.
    """

    form: Form
    root: Path
    name: str = ""
    split_by: str = ""
    text: Text = "sent"
    image_folder: Path | None = None
    allow_mixed_splits: bool = False

    def __post_init__(self) -> None:
        """Refuse an unknown form or writing (ValueError)."""
        for name, value, known in (
            ("form", self.form, get_args(Form)),
            ("text", self.text, get_args(Text)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


@dataclass(frozen=True)
class Reading:
    """What a reader found.

    Attributes:
        records: Of the split asked for, or of all splits, in the files' order.
        title: What they are, for messages: "refcoco (unc)".
        published_expressions: Number of expressions of each published split, as far as known.
    """

    records: list[Record]
    title: str
    published_expressions: Mapping[str, int] = field(default_factory=dict)


def read_records(source: Source, split: str | None, errors: ErrorCollector) -> Reading:
    """Reads the records of a split.

    Args:
        source: The data set.
        split: The split, as the form names them. None: all splits.
        problems: Takes the records that cannot be used.

    Returns:
        The records; at least one.

    Raises:
        FileNotFoundError: A file or folder is missing; the message says what belongs where.
        ValueError: The source names what is not there (the message lists what is), the split has no
            record or none that can be used, or a file is damaged as a whole.
        ImportError: The form needs a package that is not installed; the message says which.
    """
    module, function = _READERS[source.form]
    read: Callable[[Source, str | None, ErrorCollector], Reading]
    read = getattr(import_module(f"cmsa_fast.data.formats.{module}"), function)
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


def open_split(
    source: Source,
    split: str,
    *,
    for_training: bool = False,
    exclude: Mapping[str, Collection[int]] | None = None,
    errors: ErrorCollector | None = None,
) -> RecordDataset:
    """Opens a split as a data set with one item per expression.

    Args:
        source: The data set.
        split: The split, as the form names them.
        for_training: Leave expressions out whose objects have lost their masks.
        exclude: Numbers of images to leave out, under whose numbers they are, as
            `cmsa_fast.data.check.leakage.read_exclusions` returns them.
        problems: Takes the records that cannot be used. None: the first one is an error.

    Returns:
        The data set; its `report` says what was found and what was left out.

    Raises:
        FileNotFoundError, ValueError, ImportError: As `read_records`.
    """
    errors = errors or ErrorCollector(strict=True)
    before = errors.count
    reading = read_records(source, split, errors)
    return RecordDataset(
        reading.records,
        title=f"{reading.title} {split}",
        for_training=for_training,
        excluded=excluded_images(source, reading, exclude) if exclude else (),
        published_expressions=reading.published_expressions.get(split),
        unusable_records=errors.count - before,
    )
