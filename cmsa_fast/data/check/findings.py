"""The result of `data check`: counts, findings, leaks; and the published counts it compares with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..source import Form
from .images import ImageFinding
from .leakage import Leak

# References and images of published splits, where they were published or counted in an intact copy.
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
    | ImageFinding
)

# Severity of each kind, and its description after a number.
KINDS: Mapping[Kind, tuple[Severity, str]] = {
    "incomplete": ("error", "files or folders missing"),
    "not-readable": ("error", "data sets that cannot be read"),
    "record-unusable": ("error", "records that cannot be used"),
    "image-missing": ("error", "images missing"),
    "image-unreadable": ("error", "images that cannot be read"),
    "image-size": ("error", "images whose size differs from their records"),
    "mask-unfit": ("error", "masks that do not fit their image"),
    "count": ("warning", "counts that differ from the published ones"),
    "mask-empty": ("warning", "masks without a pixel"),
    "mask-outside": ("warning", "masks that extend beyond their image"),
    "mask-part-degenerate": ("warning", "degenerate polygons"),
    "expression-without-word": ("warning", "expressions without a word"),
    "image-turned": ("information", "images that fit their masks only after applying their EXIF orientation"),
    "expression-non-ascii": ("information", "expressions with non-ASCII characters"),
    "expression-repeated": ("information", "expressions that occur twice in their reference (kept)"),
    "names-nothing": ("information", "expressions without a target object (by design)"),
}


@dataclass(frozen=True)
class Finding:
    """All findings of one kind in one data set."""

    data_set: str  # label, or "" for the root
    kind: Kind
    details: tuple[str, ...]  # one message per occurrence, which names file and record

    @property
    def severity(self) -> Severity:
        """Whether the data cannot be used ("error"), results may not be comparable ("warning"), or neither."""
        return KINDS[self.kind][0]


@dataclass(frozen=True)
class SplitCount:
    """Counts of one split, and the published counts (None if unknown)."""

    split: str
    references: int
    expressions: int
    images: int
    published_references: int | None = None
    published_expressions: int | None = None
    published_images: int | None = None

    def compared(self) -> list[tuple[str, int, int]]:
        """Name, actual and published value of the counts that were published."""
        names = ("references", "expressions", "images")
        counts = ((name, getattr(self, name), getattr(self, f"published_{name}")) for name in names)
        return [count for count in counts if count[2] is not None]


@dataclass(frozen=True)
class DataSetCheck:
    """One data set under the root."""

    label: str  # unique in a result
    form: Form
    root: Path
    splits: tuple[SplitCount, ...]  # in the order of the files; empty if they cannot be read


@dataclass(frozen=True)
class CheckResult:
    """Result of `data check`."""

    root: Path
    data_sets: tuple[DataSetCheck, ...]
    findings: tuple[Finding, ...]
    leaks: tuple[Leak, ...]
    images: int  # number of images checked; an image of several data sets counts several times
    decoded: bool  # whether they were decoded completely

    @property
    def ok(self) -> bool:
        """Whether there is no error; there may be warnings."""
        return not any(finding.severity == "error" for finding in self.findings)
