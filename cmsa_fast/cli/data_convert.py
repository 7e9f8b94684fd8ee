"""`cmsa-fast data convert`: a data set of any form as one that opens fast and holds no pickle."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .data_options import FOLDERS_HELP, DataOptions, FolderForm, without_default

if TYPE_CHECKING:
    from ..data.formats.converted.convert import Conversion

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(DataOptions):
    """What to convert, and where to; `cmsa-fast data convert --help` shows it."""

    data: Annotated[FolderForm, tyro.conf.arg(metavar="FORM", help=FOLDERS_HELP)] = "refer"

    root: Path = field()  # DataOptions has a default
    """Folder of the data; of --data refer it holds refcoco/refs(unc).p, refcoco/instances.json and images/."""

    splits: Annotated[tuple[str, ...], without_default("SPLIT ...", "default: all")] = ()
    """Splits to convert, as the form names them."""

    to: Path
    """Folder to make; must be empty or not there."""

    copy_pictures: bool = False
    """Copy the pictures into the folder, byte for byte; otherwise they are found where they lie now. Pictures
    inside parquet files are written out in either case."""


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
        OSError, ValueError, TypeError, ImportError: As `cmsa_fast.data.formats.converted.convert.convert`.
    """
    from ..data.errors import Problems
    from ..data.formats.converted.convert import convert

    conversion = convert(
        options.source(),
        options.to,
        splits=options.splits,
        copy_pictures=options.copy_pictures,
        problems=Problems(strict=options.strict),
    )
    return ConvertResult(conversion, conversion.description.problems)


def format_convert(result: ConvertResult) -> str:
    """What was converted, for people."""
    from ..data.readable import readable_size

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
