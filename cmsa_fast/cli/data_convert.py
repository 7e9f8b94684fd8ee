"""`cmsa-fast data convert`: writes a data set of any form as one Parquet file that opens quickly."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .data_options import FOLDERS_HELP, DataOptions, FolderForm, without_default

if TYPE_CHECKING:
    from ..data.formats.convert import Conversion

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(DataOptions):
    """Options of `cmsa-fast data convert`."""

    data: Annotated[FolderForm, tyro.conf.arg(metavar="FORM", help=FOLDERS_HELP)] = "refer"

    root: Path = field()  # DataOptions has a default
    """Folder of the data; of --data refer it holds refcoco/refs(unc).p, refcoco/instances.json and images/."""

    splits: Annotated[tuple[str, ...], without_default("SPLIT ...", "default: all")] = ()
    """Splits to convert, by their names in this form."""

    to: Path
    """File to write, such as refcoco.parquet; must not exist."""

    copy_images: bool = False
    """Embed the image files in the file; otherwise images are read from where they are now. Images inside
    Parquet files are always embedded."""

    strict: bool = False
    """Stop at the first record that cannot be used; otherwise it is left out and reported."""


def run_convert(options: ConvertOptions) -> Conversion:
    """Converts a data set, with the errors of `cmsa_fast.data.formats.convert.convert`."""
    from ..data.errors import ErrorCollector
    from ..data.formats.convert import convert

    return convert(
        options.source(),
        options.to,
        splits=options.splits,
        copy_images=options.copy_images,
        errors=ErrorCollector(strict=options.strict),
    )


def format_convert(conversion: Conversion) -> str:
    """Formats what was converted for the terminal."""
    from ..data.errors import readable_size

    description = conversion.description
    lines = [f"{description.title} is now in {conversion.path}"]
    width = max(map(len, conversion.splits))
    for split, counts in conversion.splits.items():
        lines.append(
            f"  {split:{width}}  {counts.expressions:>7} expressions in {counts.references} records, "
            f"{counts.masks} masks, {len(counts.images)} images"
        )
    embedded = f" with {conversion.embedded} images" if conversion.embedded else ""
    lines.append(f"File: {readable_size(conversion.size)}{embedded}.")
    referenced = [path for folders in description.image_folders for path in folders.absolute]
    if referenced:
        lines.append(f"Images stay in {', '.join(dict.fromkeys(referenced))}.")
    if description.errors:
        lines.append(f"Left out {len(description.errors)} records that cannot be used:")
        lines += [f"  {line}" for line in description.errors[:_SHOWN]]
        if len(description.errors) > _SHOWN:
            lines.append("  ...; --strict stops at the first one")
    return "\n".join(lines)
