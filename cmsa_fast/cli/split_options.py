"""Options that name the split to measure on, shared by `evaluate` and `score`, and the data set they open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NoReturn

import tyro

from .data_options import DataOptions, without_default

if TYPE_CHECKING:
    from ..data.errors import ErrorCollector
    from ..data.types import ReferringDataset

_ALLOW_MISSING_HELP = (
    "Leave out records, images and masks that cannot be used, and expressions without a word; their number is in "
    "the report and in evaluation.json, and the exit status is 3. Without this option they are an error."
)
_ADVICE = "--allow-missing leaves out what cannot be used, and reports it."


@dataclass(frozen=True, kw_only=True)
class SplitOptions(DataOptions):
    """Which expressions to measure on."""

    split: Annotated[str, without_default("SPLIT", "default: the run's, else val")] = ""
    """Split to evaluate on, such as val, testA, testB or test."""

    allow_missing: Annotated[bool, tyro.conf.arg(help=_ALLOW_MISSING_HELP)] = False

    scenes: int = 500
    """Number of unseen scenes of --data scenes to evaluate on, two expressions each."""

    def collector(self) -> ErrorCollector:
        """Collects what cannot be used under --allow-missing; otherwise raises the first, with advice."""
        from ..data.errors import ErrorCollector

        class Strict(ErrorCollector):
            """Raises the first error, with advice."""

            def add(self, error: Exception) -> NoReturn:
                error.add_note(_ADVICE)
                raise error

        return ErrorCollector(strict=False) if self.allow_missing else Strict(strict=False)

    def open(self, size: int, errors: ErrorCollector) -> tuple[ReferringDataset, str]:
        """The data set, with scenes of `size` pixels, and its title."""
        if self.data == "scenes":
            from .scenes import evaluation_scenes

            return evaluation_scenes(self.scenes, size), f"{self.scenes} unseen scenes"
        from ..data.dataset import open_split

        dataset = open_split(self.source(), self.split, errors=errors)
        empty = dataset.report.empty_expressions
        if empty and not self.allow_missing:
            raise ValueError(f"{dataset.title} has {empty} expressions without a word. {_ADVICE}")
        return dataset, dataset.title
