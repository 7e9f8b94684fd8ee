"""`cmsa-fast data check`: reports what a root folder contains and what is missing or damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .data_options import check_least, without_default

if TYPE_CHECKING:
    from ..data.check.findings import CheckResult, DataSetCheck, Finding, Severity, SplitCount
    from ..data.check.leakage import Leak

_EXAMPLES = 3
_HEADINGS: Mapping[Severity, str] = {"error": "Errors", "warning": "Warnings", "information": "For information"}


@dataclass(frozen=True, kw_only=True)
class DataCheckOptions:
    """What to check and where to write the results; see `cmsa-fast data check --help`."""

    root: Annotated[Path, tyro.conf.Positional]
    """Folder with the data sets and the images."""

    image_dir: Annotated[Path | None, without_default("PATH", "default: the usual places")] = None
    """Folder of the images, if it is none of the usual ones under the root."""

    read_images: bool = False
    """Decode every image, to find truncated files; otherwise only the start of each file is read."""

    num_workers: Annotated[int | None, without_default("INT", "default: number of CPUs, at most 8")] = None
    """Worker processes that check images and masks; 0 uses the main process."""

    json: Annotated[Path | None, without_default("FILE", "default: none")] = None
    """Write all findings to this JSON file."""

    write_exclusions: Annotated[Path | None, without_default("FILE", "default: none")] = None
    """Write a JSON file for `train --exclude`: the images of training splits that are also in an evaluation
    split of any data set under the root."""


def run_data_check(options: DataCheckOptions) -> CheckResult:
    """Checks a root folder and writes the requested files."""
    from ..data.check.inspection import inspect_root
    from ..data.check.leakage import exclusions
    from ..system.files import write_json
    from ..system.processes import available_processors

    workers = options.num_workers
    if workers is None:
        workers = min(8, available_processors())
    else:
        check_least(options, num_workers=0)
    for name, file in (("json", options.json), ("write_exclusions", options.write_exclusions)):
        if file is not None and not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"there is no folder {file.absolute().parent} ({name})")
    result = inspect_root(
        options.root, image_folder=options.image_dir, read_images=options.read_images, num_workers=workers
    )
    if options.json is not None:
        write_json(options.json, check_as_dict(result))
    if options.write_exclusions is not None:
        write_json(options.write_exclusions, {"images": exclusions(result.leaks)})
    return result


def check_as_dict(result: CheckResult) -> dict[str, Any]:
    """The result as a dictionary for JSON."""
    content = {**asdict(result), "root": str(result.root), "ok": result.ok}
    for data_set in content["data_sets"]:
        data_set["root"] = str(data_set["root"])
    for written, finding in zip(content["findings"], result.findings, strict=True):
        written.update(severity=finding.severity, count=len(finding.details))
    return content


def format_check(result: CheckResult) -> str:
    """Formats the result as a report with some examples of each error and warning."""
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
        lines.append("Images in both a training and an evaluation split")
        lines += [_leak(leak) for leak in result.leaks]
        if not all(leak.is_within for leak in result.leaks):
            lines.append(
                "  Pairs of different data sets matter when training on several together: "
                "--write-exclusions FILE writes the images to exclude."
            )
        lines.append("")
    text = "\n".join([*lines, _verdict(result)])
    # Lone surrogates of damaged expressions cannot be printed.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _table(one: DataSetCheck) -> Iterator[str]:
    yield f"{one.label}  ({one.form}, {one.root})"
    if not one.splits:
        yield "  could not be read"
        return
    width = max(len("split"), *(len(split.split) for split in one.splits))
    yield f"  {'split':<{width}}  references  expressions  images  as published"
    for split in one.splits:
        counts = f"{split.references:>10}  {split.expressions:>11}  {split.images:>6}"
        yield f"  {split.split:<{width}}  {counts}  {_as_published(split)}"


def _as_published(split: SplitCount) -> str:
    compared = split.compared()
    if not compared:
        return "unknown"
    return "yes" if all(actual == published for _, actual, published in compared) else "no"


def _finding(finding: Finding) -> Iterator[str]:
    from ..data.check.findings import KINDS

    about = f"{finding.data_set}: " if finding.data_set else ""
    yield f"  {about}{len(finding.details)} {KINDS[finding.kind][1]}"
    if finding.severity == "information":
        return
    for detail in finding.details[:_EXAMPLES]:
        yield f"    {detail}"
    if len(finding.details) > _EXAMPLES:
        yield f"    and {len(finding.details) - _EXAMPLES} more (--json FILE writes all of them)"


def _leak(leak: Leak) -> str:
    shown = ", ".join(map(str, leak.images[:_EXAMPLES]))
    more = ", ..." if len(leak.images) > _EXAMPLES else ""
    return (
        f"  {leak.training} and {leak.evaluation} share {len(leak.images)} images "
        f"({leak.numbering}: {shown}{more})"
    )


def _verdict(result: CheckResult) -> str:
    counts = Counter(finding.severity for finding in result.findings)
    depth = "decoded" if result.decoded else "only their sizes"
    checked = f"{result.images} images checked ({depth})"
    errors, warnings = (
        f"{counts[severity]} kind{'s' * (counts[severity] != 1)} of {severity}"
        for severity in ("error", "warning")
    )
    if not result.ok:
        return f"Incomplete or damaged: {errors}. {checked}."
    described = warnings if counts["warning"] else "no warning"
    return f"Nothing is missing or damaged; {described}. {checked}."
