"""Options that say which data a command works on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from ..data.source import Source

FolderForm = Literal["refer", "grefcoco", "anns-masks", "parquet", "referit", "converted"]
DataForm = Literal["scenes", FolderForm]

FOLDERS_HELP = (
    "refer: the layout of REFER (RefCOCO and its relatives). grefcoco: gRefCOCO, several objects or none. "
    "anns-masks: anns/ and masks/ as CRIS and VLT write them. parquet: Hugging Face's jxu124/refcoco and "
    "relatives, as local files. referit: ReferIt in the Berkeley form. converted: what `cmsa-fast data convert` "
    "wrote."
)
FORMS_HELP = (
    "scenes: synthetic scenes, rendered on the fly, nothing to download. The others are a folder named by --root. "
    + FOLDERS_HELP
)


def without_default(metavar: str, hint: str) -> object:
    """What --help says of an option whose None is not a value to type."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"({hint})")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where expressions, images and masks come from."""

    data: Annotated[
        DataForm | None,
        tyro.conf.arg(
            metavar="FORM",
            help=FORMS_HELP,
            help_behavior_hint="(default: the data and the evaluation split of the run)",
        ),
    ] = None

    root: Annotated[Path | None, without_default("PATH", "needed unless --data scenes")] = None
    """Folder of the data; of --data refer it holds refcoco/refs(unc).p, refcoco/instances.json and images/."""

    name: Annotated[str, without_default("NAME", "default: the usual one, refcoco of REFER")] = ""
    """Data set under --root, such as refcoco, refcoco+, refcocog or refclef."""

    split_by: Annotated[str, without_default("WHO", "default: the usual one, unc or umd")] = ""
    """Who split it: unc, google, umd or berkeley; the part of refs(...).p in brackets."""

    text: Annotated[
        Literal["sent", "raw"] | None, without_default("{sent,raw}", "default: sent, or the run's")
    ] = None
    """Which writing of the expressions: sent is cleaned and in lower case, raw as it was typed."""

    image_dir: Annotated[Path | None, without_default("PATH", "default: the usual places")] = None
    """Folder of the images, where it is not under --root in one of the usual places."""

    def source(self) -> Source:
        """The data set that the options name.

        Raises:
            ValueError: --data scenes, which is no folder, or --root is missing.
        """
        from ..data.source import Source

        if self.data is None or self.data == "scenes":
            raise ValueError("--data must name a form that is a folder; scenes are synthetic.")
        if self.root is None:
            raise ValueError(
                f"--data {self.data} needs --root, the folder with the data set and its images."
            )
        return Source(
            form=self.data,
            root=self.root,
            name=self.name,
            split_by=self.split_by,
            text=self.text or "sent",
            image_folder=self.image_dir,
        )

    def check_data(self) -> None:
        """Refuse options that contradict each other (ValueError)."""
        if self.data != "scenes":
            self.source()
        elif self.root is not None:
            raise ValueError(
                "--root goes with --data refer and the other forms that are folders; --data scenes draws "
                "its images itself."
            )
