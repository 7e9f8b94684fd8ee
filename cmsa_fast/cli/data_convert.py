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

    copy_images: bool = False
    """Copy the images into the folder, byte for byte; otherwise they are found where they lie now. Images
    inside parquet files are written out in either case."""

    strict: bool = False
    """Stop at the first record that cannot be used; otherwise it is left out and reported."""


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
    from ..data.errors import ErrorCollector
    from ..data.formats.converted.convert import convert

    conversion = convert(
        options.source(),
        options.to,
        splits=options.splits,
        copy_images=options.copy_images,
        errors=ErrorCollector(strict=options.strict),
    )
    return ConvertResult(conversion, conversion.description.errors)


def format_convert(result: ConvertResult) -> str:
    """What was converted, for people."""
    from ..data.readable import readable_size

    conversion = result.conversion
    description = conversion.description
    lines = [f"{description.title} is now in {conversion.folder}"]
    width = max(map(len, description.splits))
    for split, entry in description.splits.items():
        lines.append(
            f"  {split:{width}}  {entry.expressions:>7} expressions in {entry.references} records, "
            f"{entry.masks} masks, {entry.images} images"
        )
    lines.append(f"Records: {readable_size(conversion.record_bytes)}.")
    if conversion.images_written:
        lines.append(
            f"Images in the folder: {conversion.images_written}, "
            f"{readable_size(conversion.image_bytes)}."
        )
    referenced = [path for folders in description.image_folders for path in folders.absolute]
    if referenced:
        lines.append(f"Images stay in {', '.join(dict.fromkeys(referenced))}.")
    if result.left_out:
        lines.append(f"Left out {len(result.left_out)} records that cannot be used:")
        lines += [f"  {line}" for line in result.left_out[:_SHOWN]]
        if len(result.left_out) > _SHOWN:
            lines.append(f"  All are in {conversion.folder / 'dataset.json'} under problems.")
    return "\n".join(lines)
