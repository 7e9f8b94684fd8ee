"""`cmsa-fast data check`: what lies under a root folder, and whether it is whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .data_options import without_default

if TYPE_CHECKING:
    from ..data.check.findings import CheckResult, DataSetCheck, Finding, Severity, SplitCount
    from ..data.check.leakage import Leak

_EXAMPLES = 3
_HEADINGS: Mapping[Severity, str] = {
    "error": "Errors",
    "warning": "Warnings",
    "information": "For information",
}


@dataclass(frozen=True, kw_only=True)
class DataCheckOptions:
    """What to look at, and where to write what was found; `cmsa-fast data check --help` shows it."""

    root: Annotated[Path, tyro.conf.Positional]
    """Folder with the data sets and the images."""

    image_dir: Annotated[Path | None, without_default("PATH", "default: the usual places")] = None
    """Folder of the images, where it is not under the root in one of the usual places."""

    read_images: bool = False
    """Decode every image, which finds those that are cut short; otherwise the start of each file is read."""

    num_workers: Annotated[int | None, without_default("INT", "default: by the processors")] = None
    """Processes that look at images and draw masks beside the main one; 0: none."""

    json: Annotated[Path | None, without_default("FILE", "default: none")] = None
    """File for everything that was found, for programs."""

    write_exclusions: Annotated[Path | None, without_default("FILE", "default: none")] = None
    """JSON file for the numbers of the images to leave out when training on all data sets of the root
    together: those of a training split that any evaluation split has too."""


def run_data_check(options: DataCheckOptions) -> CheckResult:
    """Looks at a root and writes the files asked for.

    Args:
        options: What to look at.

    Returns:
        What was found; its `ok` is False where something is missing or damaged.

    Raises:
        FileNotFoundError: The root, or the folder of a file to write, is missing.
        ValueError: `num_workers` is negative.
    """
    from ..data.check.inspection import inspect_root
    from ..data.check.leakage import exclusions
    from ..data.loader import available_processors
    from .run_folder import write_json

    workers = options.num_workers
    if workers is None:
        workers = min(8, available_processors())
    if workers < 0:
        raise ValueError(f"num_workers must be at least 0, not {workers}")
    for name, file in (("json", options.json), ("write_exclusions", options.write_exclusions)):
        if file is not None and not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"there is no folder {file.absolute().parent} ({name})")
    result = inspect_root(
        options.root,
        image_folder=options.image_dir,
        read_images=options.read_images,
        num_workers=workers,
    )
    if options.json is not None:
        write_json(options.json, check_as_dict(result))
    if options.write_exclusions is not None:
        write_json(options.write_exclusions, {"images": exclusions(result.leaks)})
    return result


def check_as_dict(result: CheckResult) -> dict[str, Any]:
    """Everything that was found, in what JSON knows."""
    return {
        "root": str(result.root),
        "ok": result.ok,
        "pictures": result.images,
        "decoded": result.decoded,
        "data_sets": [
            {
                "label": one.label,
                "form": one.form,
                "root": str(one.root),
                "splits": [asdict(split) for split in one.splits],
            }
            for one in result.data_sets
        ],
        "findings": [
            {
                "data_set": finding.data_set,
                "kind": finding.kind,
                "severity": finding.severity,
                "count": len(finding.details),
                "details": list(finding.details),
            }
            for finding in result.findings
        ],
        "leaks": [
            {
                "training": {"data_set": leak.training[0], "split": leak.training[1]},
                "evaluation": {"data_set": leak.evaluation[0], "split": leak.evaluation[1]},
                "numbering": leak.numbering,
                "pictures": list(leak.images),
            }
            for leak in result.leaks
        ],
    }


def format_check(result: CheckResult) -> str:
    """A report for people: short where all is well, with some examples of each problem."""
    lines: list[str] = []
    for one in result.data_sets:
        lines += [*_table(one), ""]
    for severity, heading in _HEADINGS.items():
        findings = [finding for finding in result.findings if finding.severity == severity]
        if findings:
            lines.append(heading)
            for finding in findings:
                lines += _finding(finding)
            lines.append("")
    if result.leaks:
        lines.append("Images both learnt from and evaluated on")
        lines += [_leak(leak) for leak in result.leaks]
        if not all(leak.is_within for leak in result.leaks):
            lines.append(
                "  Pairs of different data sets matter where one trains on several together: "
                "--write-exclusions FILE writes the numbers to leave out."
            )
        lines.append("")
    text = "\n".join([*lines, _verdict(result)])
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # what no terminal can show


def _table(one: DataSetCheck) -> Iterator[str]:
    yield f"{one.label}  ({one.form}, {one.root})"
    if not one.splits:
        yield "  could not be read"
        return
    width = max(len("split"), *(len(split.split) for split in one.splits))
    yield f"  {'split':<{width}}  references  expressions  images  as published"
    for split in one.splits:
        yield (
            f"  {split.split:<{width}}  {split.references:>10}  {split.expressions:>9}  "
            f"{split.images:>8}  {_as_published(split)}"
        )


def _as_published(split: SplitCount) -> str:
    pairs = (
        (split.references, split.published_references),
        (split.expressions, split.published_expressions),
        (split.images, split.published_images),
    )
    known = [(found, published) for found, published in pairs if published is not None]
    if not known:
        return "unknown"
    return "yes" if all(found == published for found, published in known) else "no"


def _finding(finding: Finding) -> Iterator[str]:
    from ..data.check.findings import KINDS

    about = f"{finding.data_set}: " if finding.data_set else ""
    yield f"  {about}{len(finding.details)} {KINDS[finding.kind][1]}"
    if finding.severity == "information":
        return
    for detail in finding.details[:_EXAMPLES]:
        yield f"    {detail}"
    if len(finding.details) > _EXAMPLES:
        yield f"    and {len(finding.details) - _EXAMPLES} more (--json FILE writes all)"


def _leak(leak: Leak) -> str:
    shown = ", ".join(map(str, leak.images[:_EXAMPLES]))
    more = ", ..." if len(leak.images) > _EXAMPLES else ""
    return (
        f"  {' '.join(leak.training)} and {' '.join(leak.evaluation)} share {len(leak.images)} "
        f"images ({leak.numbering}: {shown}{more})"
    )


def _verdict(result: CheckResult) -> str:
    counts = {
        severity: sum(finding.severity == severity for finding in result.findings)
        for severity in _HEADINGS
    }
    depth = "decoded" if result.decoded else "sizes read, not decoded"
    looked = f"{result.images} images looked at ({depth})"
    if not result.ok:
        return f"Not whole: {_kinds(counts['error'], 'error')}. {looked}."
    warnings = _kinds(counts["warning"], "warning") if counts["warning"] else "no warning"
    return f"Nothing is missing or damaged; {warnings}. {looked}."


def _kinds(count: int, what: str) -> str:
    return f"{count} {'kind' if count == 1 else 'kinds'} of {what}"
