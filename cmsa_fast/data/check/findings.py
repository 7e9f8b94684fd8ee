"""What was found in a root folder, and the published numbers that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..source import Form
from .images import Trouble
from .leakage import Leak

# References and images of published splits, as far as they were printed or counted in a sound copy.
PUBLISHED_REFERENCES: Mapping[tuple[str, str], Mapping[str, int]] = {
    ("refcoco", "unc"): {"train": 42_404, "val": 3_811, "testA": 1_975, "testB": 1_810},
    ("refcoco+", "unc"): {"train": 42_278, "val": 3_805, "testA": 1_975, "testB": 1_798},
    ("refcocog", "umd"): {"train": 42_226, "val": 2_573, "test": 5_023},
    ("refcocog", "google"): {"train": 44_822, "val": 5_000},
}
PUBLISHED_IMAGES: Mapping[tuple[str, str], Mapping[str, int]] = {
    ("refcoco", "unc"): {"val": 1_500, "testA": 750, "testB": 750},
    ("refcoco+", "unc"): {"val": 1_500, "testA": 750, "testB": 750},
    ("refcocog", "umd"): {"val": 1_300, "test": 2_600},
    ("refcocog", "google"): {"val": 4_650},
}

Severity = Literal["error", "warning", "information"]
Kind = (
    Literal[
        "incomplete",
        "not-readable",
        "record-unusable",
        "count",
        "expression-without-word",
        "expression-non-ascii",
        "expression-repeated",
        "names-nothing",
    ]
    | Trouble
)

# How bad each kind is, and what a number of them is called.
KINDS: Mapping[Kind, tuple[Severity, str]] = {
    "incomplete": ("error", "things missing"),
    "not-readable": ("error", "data sets that cannot be read"),
    "record-unusable": ("error", "records that cannot be used"),
    "image-missing": ("error", "images missing"),
    "image-unreadable": ("error", "images that cannot be read"),
    "image-size": ("error", "images of another size than their records say"),
    "mask-unfit": ("error", "masks that cannot be drawn on their image"),
    "count": ("warning", "counts that differ from the published ones"),
    "mask-empty": ("warning", "masks without a pixel"),
    "mask-outside": ("warning", "masks that pass the edge of their image"),
    "mask-part-degenerate": ("warning", "polygons that enclose nothing"),
    "expression-without-word": ("warning", "expressions without a word"),
    "image-turned": ("information", "images that are turned upright to fit their masks"),
    "expression-non-ascii": ("information", "expressions with characters beyond ASCII"),
    "expression-repeated": ("information", "expressions that their reference has already (kept)"),
    "names-nothing": ("information", "expressions that name nothing in their image, by intent"),
}


@dataclass(frozen=True)
class Finding:
    """Everything of one kind that was found in one data set.

    Attributes:
        data_set: Its label, or "" where it is about the root.
        kind: What it is; `KINDS` has the words for it.
        details: One expression for each, naming file and record.
    """

    data_set: str
    kind: Kind
    details: tuple[str, ...]

    @property
    def severity(self) -> Severity:
        """Whether it spoils the data ("error"), a comparison ("warning"), or nothing."""
        return KINDS[self.kind][0]


@dataclass(frozen=True)
class SplitCount:
    """How much one split holds, and how much was published (None where that is unknown)."""

    split: str
    references: int
    expressions: int
    images: int
    published_references: int | None = None
    published_expressions: int | None = None
    published_images: int | None = None


@dataclass(frozen=True)
class DataSetCheck:
    """One data set of the root.

    Attributes:
        label: What it is called in this result; no two have the same.
        form: How its files are laid out.
        root: The folder it was read from.
        splits: Its splits, in the files' order; none where it could not be read.
    """

    label: str
    form: Form
    root: Path
    splits: tuple[SplitCount, ...]


@dataclass(frozen=True)
class CheckResult:
    """What lies under a root.

    Attributes:
        root: The folder.
        data_sets: What was recognised.
        findings: What was found, by data set.
        leaks: Training and evaluation splits that share images.
        images: Number of distinct images looked at, data set by data set.
        decoded: Whether they were decoded whole.
    """

    root: Path
    data_sets: tuple[DataSetCheck, ...]
    findings: tuple[Finding, ...]
    leaks: tuple[Leak, ...]
    images: int
    decoded: bool

    @property
    def ok(self) -> bool:
        """Whether nothing is missing or damaged; there may be warnings."""
        return not any(finding.severity == "error" for finding in self.findings)
