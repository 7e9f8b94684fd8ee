"""`cmsa-fast data convert`: a data set of any form as one that opens fast and holds no pickle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cmsa_fast.data.convert import Conversion, convert
from cmsa_fast.data.problems import Problems
from cmsa_fast.data.readable import readable_size
from cmsa_fast.data.source import Form, Source, Text

_SHOWN = 5


def _without_default(metavar: str, hint: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {hint})")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What to convert, and where to; `cmsa-fast data convert --help` shows it."""

    data: Form = "refer"
    """How the data set's files are laid out."""

    root: Path
    """Folder that holds the data set."""

    name: Annotated[str, _without_default("TEXT", "the form's usual one")] = ""
    """Data set under --root: refcoco, refcoco+, refcocog, refclef, or the folder of one's own."""

    split_by: Annotated[str, _without_default("TEXT", "the usual one")] = ""
    """Who split it: unc, google, umd or berkeley."""

    text: Text = "sent"
    """Which writing of the sentences to keep: sent is cleaned and in lower case, raw is as it was typed."""

    image_dir: Annotated[Path | None, _without_default("PATH", "the usual ones under --root")] = (
        None
    )
    """Folder of the pictures."""

    allow_mixed_splits: bool = False
    """Convert a copy known to mix the splits of several data sets all the same."""

    splits: Annotated[tuple[str, ...], _without_default("SPLIT ...", "all")] = ()
    """Splits to convert, as the form names them."""

    to: Path
    """Folder to make; must be empty or not there."""

    copy_pictures: bool = False
    """Copy the pictures into the folder, byte for byte; otherwise they are found where they lie now. Pictures
    inside parquet files are written out in either case."""

    strict: bool = False
    """Stop at the first damaged record; otherwise such records are left out, counted and told."""


@dataclass(frozen=True)
class ConvertResult:
    """What was converted.

    Attributes:
        conversion: What was written, and where.
        left_out: One line for each record that could not be used.
    """

    conversion: Conversion
    left_out: tuple[str, ...]


def run_convert(options: ConvertOptions) -> ConvertResult:
    """Converts a data set.

    Args:
        options: What to convert, and where to.

    Returns:
        What was written. The folder is there as a whole, or not at all.

    Raises:
        OSError, ValueError, TypeError, ImportError: As `cmsa_fast.data.convert.convert`.
    """
    source = Source(
        form=options.data,
        root=options.root,
        name=options.name,
        split_by=options.split_by,
        text=options.text,
        image_folder=options.image_dir,
        allow_mixed_splits=options.allow_mixed_splits,
    )
    conversion = convert(
        source,
        options.to,
        splits=options.splits,
        copy_pictures=options.copy_pictures,
        problems=Problems(strict=options.strict),
    )
    return ConvertResult(conversion, conversion.description.problems)


def format_convert(result: ConvertResult) -> str:
    """What was converted, for people."""
    conversion = result.conversion
    description = conversion.description
    lines = [f"{description.title} is now in {conversion.folder}"]
    width = max(map(len, description.splits))
    for split, entry in description.splits.items():
        lines.append(
            f"  {split:{width}}  {entry.sentences:>7} sentences in {entry.references} records, "
            f"{entry.masks} masks, {entry.pictures} pictures"
        )
    lines.append(f"Records: {readable_size(conversion.record_bytes)}.")
    if conversion.pictures_written:
        lines.append(
            f"Pictures in the folder: {conversion.pictures_written}, "
            f"{readable_size(conversion.picture_bytes)}."
        )
    referenced = [path for folders in description.picture_folders for path in folders.absolute]
    if referenced:
        lines.append(f"Pictures stay in {', '.join(dict.fromkeys(referenced))}.")
    if result.left_out:
        lines.append(f"Left out {len(result.left_out)} records that cannot be used:")
        lines += [f"  {line}" for line in result.left_out[:_SHOWN]]
        if len(result.left_out) > _SHOWN:
            lines.append(f"  All are in {conversion.folder / 'dataset.json'} under problems.")
    return "\n".join(lines)
