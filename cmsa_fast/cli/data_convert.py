"""`cmsa-fast data convert`: writes a data set of any form as one Parquet file or as a manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .data_options import FORMS_HELP, DataForm, DataOptions, check_least, without_default

if TYPE_CHECKING:
    from ..data.formats.conversion import Conversion

_SHOWN = 5
_SUFFIXES = {"parquet": ".parquet", "manifest": ".jsonl"}


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(DataOptions):
    """Options of `cmsa-fast data convert`."""

    data: Annotated[DataForm, tyro.conf.arg(metavar="FORM", help=FORMS_HELP)] = "refer"

    splits: Annotated[tuple[str, ...], without_default("SPLIT ...", "default: all")] = ()
    """Splits to convert, by their names in this form."""

    to: Path
    """File to write; must not exist. NAME.parquet is a Parquet file for --data converted, which opens quickly;
    NAME.jsonl a manifest for --data manifest, which other programs can read and write. The words parquet and
    manifest stand for such a file in the current folder, named after the data set."""

    copy_images: bool = False
    """Embed the image files in the Parquet file, or copy them into the folder NAME-images beside the manifest;
    otherwise images are read from where they are now. Images without a file of their own are always copied."""

    scenes: int = 500
    """Number of scenes in each split of --data scenes (train, val, test), two expressions each. Those of val are
    the scenes that `evaluate --data scenes` evaluates on."""

    size: int = 128
    """Side of the images of --data scenes, in pixels."""

    strict: bool = False
    """Stop at the first record that cannot be used; otherwise it is left out and reported."""


def run_convert(options: ConvertOptions) -> Conversion:
    """Converts a data set, with the errors of `cmsa_fast.data.formats.convert.convert`."""
    from ..data.errors import ErrorCollector
    from ..data.formats.convert import convert, convert_records

    options.check_data()
    check_least(options, scenes=1)
    to = options.to.expanduser()
    if (suffix := _SUFFIXES.get(str(to))) is not None:
        default = "refcoco" if options.data == "refer" else str(options.data)
        to = Path(f"{options.name or default}{suffix}")
    errors = ErrorCollector(strict=options.strict)
    if options.data == "scenes":
        from ..data.scenes.records import scene_records

        reading = scene_records(options.scenes, options.size, options.splits)
        return convert_records(reading, to, origin={"form": "scenes"}, errors=errors)
    return convert(options.source(), to, splits=options.splits, copy_images=options.copy_images, errors=errors)


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
    where = "in a folder beside it" if conversion.path.suffix == _SUFFIXES["manifest"] else "in it"
    embedded = f"; {conversion.embedded} images are {where}" if conversion.embedded else ""
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
