"""Numbers of expressions of the published RefCOCO, RefCOCO+, RefCOCOg and RefCLEF splits."""

from __future__ import annotations

from collections.abc import Mapping

# By data set, author of the split, and split; empty where the numbers were never printed. RefCOCOg's
# google release lacks its test split, so its often quoted total of 104 560 is of more than the file.
PUBLISHED_EXPRESSIONS: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "refcoco": {
        "unc": {"train": 120_624, "val": 10_834, "testA": 5_657, "testB": 5_095},
        "google": {},
    },
    "refcoco+": {"unc": {"train": 120_191, "val": 10_758, "testA": 5_726, "testB": 4_889}},
    "refcocog": {
        "umd": {"train": 80_512, "val": 4_896, "test": 9_602},
        "google": {"train": 85_474, "val": 9_536},
    },
    "refclef": {"unc": {}, "berkeley": {}},
}


def published_origin(expressions: int | None) -> tuple[tuple[str, str], str]:
    """Identifies a published split by its number of expressions, which no two splits share.

    Returns `(data set, author of the split), split`, with empty strings if no split has this number. (Copies
    rename data sets and splits, so names do not identify them.)
    """
    for name, made in PUBLISHED_EXPRESSIONS.items():
        for split_by, splits in made.items():
            for split, count in splits.items():
                if count == expressions:
                    return (name, split_by), split
    return ("", ""), ""


def usual_split_by(name: str) -> str:
    """The author of the split that is used if none is named."""
    return "umd" if name == "refcocog" else "unc"
