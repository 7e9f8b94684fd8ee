"""Which parquet files make up a data set, and which of them a split."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ...source import Source
from ..refer import missing_split

_logger = logging.getLogger(__name__)

_WHAT_BELONGS = (
    "The root of a parquet data set is the repository's folder, the folder 'data' inside it, or one "
    "file; the files are named <split>-00000-of-0000N.parquet, with or without more after the N"
)

_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?")

# What the repositories call a data set, and what it is.
DATASET_NAMES = {
    "refcoco": "refcoco",
    "refcoco+": "refcoco+",
    "refcocoplus": "refcoco+",
    "refcoco_plus": "refcoco+",
    "refcocog": "refcocog",
}


@dataclass(frozen=True)
class Shard:
    """A file that holds a split or a part of one.

    Attributes:
        path: The file.
        split: The split as the file's name has it.
        number: Which part of the split it is, from 0.
        count: Number of parts.
    """

    path: Path
    split: str
    number: int = 0
    count: int = 1


def find_shards(source: Source) -> list[Shard]:
    """Finds the parquet files of a source.

    Args:
        source: Its root is one file, or a folder that has the files itself, in its folder `data`,
            in its folder `source.name`, or in the folder `data` of that.

    Returns:
        The files, at least one, in the order of their names.

    Raises:
        FileNotFoundError: There is no such folder, or no parquet file in it.
        ValueError: `source.name` is neither a data set nor a folder.
    """
    root, name = source.root, source.name
    if root.is_file():
        return [_shard(root)]
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder or file {root}. {_WHAT_BELONGS}.")
    if name and (name == ".." or PurePath(name).name != name):
        raise ValueError(f"name must be the name of a data set or folder, not {name!r}")
    dataset = DATASET_NAMES.get(name)
    same = [one for one, known in DATASET_NAMES.items() if name and known == dataset]
    named = [root / one for one in (name, *same) if one and (root / one).is_dir()]
    base = named[0] if named else root
    folders = [base, base / "data"]
    if name and not named and dataset is None:
        raise ValueError(
            f"name {name!r} is no folder of {root} and none of {', '.join(DATASET_NAMES)}"
        )
    for folder in folders:
        files = sorted(file for file in folder.glob("*.parquet") if file.is_file())
        if files:
            return [_shard(file) for file in files]
    inside = sorted(
        {
            file.relative_to(root).parts[0]
            for pattern in ("*/*.parquet", "*/data/*.parquet")
            for file in root.glob(pattern)
        }
    )
    hint = f" Parquet files lie in its {', '.join(inside)}: name one of them." if inside else ""
    raise FileNotFoundError(
        f"there is no parquet file in {' or '.join(map(str, folders))}.{hint} {_WHAT_BELONGS}."
    )


def check_complete(shards: Sequence[Shard], source: Source) -> None:
    """Sees to it that every part of the splits is there, and once.

    Args:
        shards: All files of one or more splits.
        source: Where they come from; a root that is one file is taken as it is.

    Raises:
        FileNotFoundError: A part of a split is missing.
        ValueError: A part is there twice, as where two data sets were put into one folder.
    """
    if source.root.is_file():
        if shards[0].count > 1:
            _logger.warning("%s is one of %d parts of its split", source.root, shards[0].count)
        return
    for split in dict.fromkeys(shard.split for shard in shards):
        parts = [shard for shard in shards if shard.split == split]
        folder, count = parts[0].path.parent, parts[0].count
        numbers = [part.number for part in parts]
        if len(set(numbers)) < len(numbers) or {part.count for part in parts} != {count}:
            raise ValueError(
                f"{folder} has parts of split {split!r} from more than one copy "
                f"({', '.join(part.path.name for part in parts)}): keep those of one data set, or "
                "give one file as the root"
            )
        missing = sorted(set(range(count)) - set(numbers))
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {len(missing)} of the {count} parts of split {split!r}; the first "
                f"missing file is {split}-{missing[0]:05d}-of-{count:05d}*.parquet"
            )


def find_dataset(source: Source, shards: Sequence[Shard]) -> str | None:
    """Which data set a copy without a name of its own is.

    Args:
        source: Its name says so, or the folders do.
        shards: Its files.

    Returns:
        "refcoco", "refcoco+", "refcocog", or None where nothing says.

    Raises:
        ValueError: The source's name and the folder's contradict each other.
    """
    asked = DATASET_NAMES.get(source.name)
    folder = shards[0].path.absolute().parent
    named = folder.parent.name if folder.name == "data" else folder.name
    if folder.parent.parent.name == "snapshots":  # as downloads are cached: of a revision
        named = folder.parent.parent.parent.name
    found = DATASET_NAMES.get(named.lower().rpartition("--")[2])
    if asked and found and asked != found:
        raise ValueError(
            f"name {source.name!r} contradicts the folder {folder}, which is {found} by its name"
        )
    return asked or found


def split_names(shards: Iterable[Shard]) -> str:
    """The splits that files are of, for a message."""
    return ", ".join(dict.fromkeys(shard.split for shard in shards))


def nothing_read(split: str | None, shards: Sequence[Shard], recorded: Iterable[str]) -> ValueError:
    """The error where no record is left.

    Args:
        split: The split asked for.
        shards: The files read.
        recorded: The splits of the records that were passed over.
    """
    return ValueError(missing_split(split, shards[0].path.parent, recorded))


def _shard(path: Path) -> Shard:
    match = _SHARD.fullmatch(path.stem)
    if match is None:
        return Shard(path, path.stem)
    return Shard(path, match["split"], int(match["number"]), int(match["count"]))
