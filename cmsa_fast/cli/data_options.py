"""Options that name a data set, shared by the commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from ..data.source import Source

FolderForm = Literal["refer", "grefcoco", "anns-masks", "parquet", "referit", "manifest", "converted"]
DataForm = Literal["scenes", FolderForm]

FOLDERS_HELP = (
    "refer: the layout of REFER (RefCOCO, RefCOCO+, RefCOCOg, RefCLEF). grefcoco: gRefCOCO, whose expressions "
    "name any number of objects. anns-masks: the anns/ and masks/ folders of CRIS and VLT. parquet: local copies "
    "of jxu124/refcoco and related data sets. referit: ReferIt in the Berkeley layout. manifest: your own images, "
    "one JSON object a line in the file --root. converted: a Parquet file by `cmsa-fast data convert`."
)
FORMS_HELP = (
    "scenes: synthetic scenes, which need no download. All other formats are read from the folder --root. "
    + FOLDERS_HELP
)


def without_default(metavar: str, hint: str) -> object:
    """Metavar and default in --help of an option whose default is not a value that users type."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"({hint})")


def option(name: str) -> str:
    """How an option is written on the command line."""
    return "--" + name.replace("_", "-")


def check_least(options: object, **least: int) -> None:
    """Raises a ValueError for an option below its smallest value."""
    for name, value in least.items():
        if getattr(options, name) < value:
            raise ValueError(f"{option(name)} must be at least {value}; got {getattr(options, name)}.")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where expressions, images and masks are read from."""

    data: Annotated[
        DataForm | None,
        tyro.conf.arg(
            metavar="FORM", help=FORMS_HELP, help_behavior_hint="(default: data and evaluation split of the run)"
        ),
    ] = None

    root: Annotated[Path | None, without_default("PATH", "required unless --data scenes")] = None
    """Folder or file of the data; --data refer: with refcoco/refs(unc).p, refcoco/instances.json and images/."""

    name: Annotated[str, without_default("NAME", "default: depends on the format; refcoco for refer")] = ""
    """Name of the data set under --root: refcoco, refcoco+, refcocog, refclef, ..."""

    split_by: Annotated[str, without_default("NAME", "default: unc or umd, depending on --name")] = ""
    """Origin of the splits: unc, google, umd or berkeley, as in the file name refs(unc).p."""

    text: Annotated[
        Literal["sent", "raw"] | None, without_default("{sent,raw}", "default: sent, or that of the run")
    ] = None
    """Text of the expressions. sent: cleaned and in lower case; raw: as the annotators typed it."""

    image_dir: Annotated[Path | None, without_default("PATH", "default: searched under --root")] = None
    """Folder of the images, if they are not under --root in the layout of the format."""

    def source(self) -> Source:
        """The data set that the options name."""
        from ..data.source import Source

        if self.data is None or self.data == "scenes":
            raise ValueError("--data must be a format that is read from a folder; got scenes.")
        if self.root is None:
            raise ValueError(f"--data {self.data} needs --root, the folder or the file of the data set.")
        return Source(
            form=self.data,
            root=self.root,
            name=self.name,
            split_by=self.split_by,
            text=self.text or "sent",
            image_folder=self.image_dir,
        )

    def check_data(self) -> None:
        """Raise a ValueError if --data and --root do not fit together."""
        if self.data != "scenes":
            self.source()
        elif self.root is not None:
            raise ValueError(
                "--root cannot be used with --data scenes, which renders its images; name another format."
            )
