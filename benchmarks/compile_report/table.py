"""Rows of the report, one for each kernel of a case and one for each call, and the file that keeps them."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from . import assembly, roofline
from .architectures import TABLE
from .cases import Case, Size, case_of, launches, shipped
from .counting import Work, count
from .driver import Launch

# Bytes of stack per thread that a kernel may spill registers to.
SPILL_LIMIT = 256
# Calls with a prediction: family, size. Work is counted for one image and multiplied.
CALLS = (
    ("separable", Size(8, 1600, 20)),
    ("separable", Size(1, 400, 20)),
    ("joint", Size(8, 400, 20)),
    ("level_tail", Size(8, 1600, 20)),
)
_CALL = ("bfloat16", 512)  # arithmetic and width
_SIZES = ("OWN", "OTHER", "ROWS", "KEYS", "CHUNK", "CHANNELS", "VALUES", "SLICE", "num_warps", "num_stages")

Row = dict[str, Any]
# "case" and a Case, or "call" and its family, architecture and size.
Task = tuple[str, Any]


def rows_of(task: Task) -> list[Row]:
    kind, what = task
    return kernel_rows(what, launches(what)) if kind == "case" else call_rows(*what)


def kernel_rows(case: Case, calls: dict[str, list[Launch]]) -> list[Row]:
    """One row for each kernel of a case.

    A kernel that is launched on several shapes may be compiled several times. Its row is that of the launch with
    the largest stack, then the most registers, with the largest shared memory of all.
    """
    rows: dict[str, Row] = {}
    for launch in (launch for call in calls.values() for launch in call if launch.compiled):
        registers, stack = assembly.resources(launch.compiled.asm["cubin"])
        row = {
            **case._asdict(),
            "kernel": launch.kernel,
            "tile": " ".join(f"{key.lower()}={launch.options[key]}" for key in _SIZES if key in launch.options),
            "shared_bytes": launch.compiled.metadata.shared,
            "registers": registers,
            "stack_bytes": stack,
            "ctas": roofline.resident(case.architecture, launch),
            "loops": [_describe(loop) for loop in assembly.hot_loops(launch.compiled.asm["ptx"])],
        }
        other = rows.get(launch.kernel, row)
        worse = max(other, row, key=lambda row: (row["stack_bytes"], row["registers"]))
        shared = max(row["shared_bytes"], other["shared_bytes"])
        rows[launch.kernel] = {**worse, "shared_bytes": shared, "ctas": min(row["ctas"], other["ctas"])}
    return list(rows.values())


def _describe(loop: assembly.Loop) -> list[Any]:
    """[tensor-core instructions, barriers, plain loads, copies] of one iteration."""
    shapes = ", ".join(f"{number} {instruction}" for instruction, number in loop.instructions.items())
    return [shapes, loop.barriers, loop.plain_loads, loop.copies]


def call_rows(family: str, architecture: int, size: Size) -> list[Row]:
    """One row with the prediction for "forward", and one for "forward + backward" if the family has a backward."""
    case = Case(family, architecture, *_CALL)
    calls = launches(case, size)
    works = {
        call: [Work(work.kernel, *(size.batch * number for number in work[1:])) for work in counted]
        for call, counted in count(case, size._replace(batch=1)).items()
    }
    rows: list[Row] = []
    names: list[str] = []
    for name in roofline.FLOOR[family]:
        names.append(name)
        made = [launch for name in names for launch in calls[name]]
        counted = [work for name in names for work in works[name]]
        predictions = [part for name in names for part in roofline.predict(case, calls[name], works[name])]
        seconds = sum(part.seconds for part in predictions)
        flop = sum(work.flop for work in counted) + sum(launch.flop for launch in made)
        least = roofline.floor(case, size, sum(roofline.FLOOR[family][name] for name in names))
        rows.append(
            {
                **case._asdict(),
                **size._asdict(),
                "call": " + ".join(names),
                "launches": len(made),
                "products": round(flop / roofline.unit(family, size, case.width), 2),
                "gflop": round(flop / 1e9, 1),
                "tensor_mb": round(sum(launch.tensors for launch in made) / 1e6, 1),
                "program_mb": round(sum(work.loaded + work.stored for work in counted) / 1e6, 1),
                "predicted_us": round(seconds * 1e6, 1),
                "predicted_share_of_floor": round(least / seconds, 3),
                "predicted_parts": [
                    [part.kernel, round(part.seconds * 1e6, 1), part.bound] for part in predictions
                ],
            }
        )
    return rows


def within_limits(row: Row) -> bool:
    return row["shared_bytes"] <= TABLE[row["architecture"]].shared_limit and row["stack_bytes"] <= SPILL_LIMIT


def format_kernel(row: Row) -> str:
    loops = "; ".join(
        f"{shapes or 'no tensor core'}, {barriers} barriers, {plain} plain loads, {copies} copies"
        for shapes, barriers, plain, copies in row["loops"]
    )
    text = (
        f"sm_{row['architecture']:<4}{row['arithmetic']:9}{row['width']:>4} {row['variant']:12}{row['kernel']:26}"
        f"{row['shared_bytes']:>7} B shared{row['registers']:>4} registers{row['stack_bytes']:>4} B spilled "
        f"{row['ctas']:>2} CTAs  {row['tile']}  [{loops}]"
    )
    return text if within_limits(row) else text + "  EXCEEDS A LIMIT"


def format_call(row: Row) -> str:
    size = f"B {row['batch']}, P {row['places']}, N {row['words']}, d {row['width']}"
    return (
        f"sm_{row['architecture']:<4}{row['family']} {row['call']}, {row['arithmetic']}, {size}: "
        f"{row['launches']} launches, {row['products']} products, {row['gflop']} GFLOP, {row['tensor_mb']} MB; "
        f"predicted {row['predicted_us']} us, {row['predicted_share_of_floor']:.0%} of the floor"
    )


def environment() -> dict[str, str]:
    import triton

    return {"torch": torch.__version__, "triton": triton.__version__}


def read(path: Path) -> tuple[dict[str, str], list[Row], list[Row]]:
    """The environment, the rows of kernels and the rows of calls in a file."""
    table = json.loads(path.read_text(encoding="utf-8"))
    kernels, calls = (
        [dict(zip(table[part]["columns"], row, strict=True)) for row in table[part]["rows"]]
        for part in ("kernels", "calls")
    )
    return table["environment"], kernels, calls


def write(path: Path, kernels: list[Row], calls: list[Row]) -> None:
    """Update the rows in the file; others that belong to the report stay if made by the same versions."""
    if path.is_file():
        written_by, old_kernels, old_calls = read(path)
        if written_by == environment():
            replaced = {case_of(row) for row in kernels}
            kept = set(shipped()) - replaced
            kernels = [row for row in old_kernels if case_of(row) in kept] + kernels
            made = {call_of(row) for row in calls}
            calls = [row for row in old_calls if call_of(row) in set(shipped_calls()) - made] + calls
    parts = {"kernels": kernels, "calls": calls}
    text = ",\n".join(f' "{name}": {_lines(rows)}' for name, rows in parts.items())
    path.write_text(f'{{\n "environment": {json.dumps(environment())},\n{text}\n}}\n', encoding="utf-8")


def _lines(rows: list[Row]) -> str:
    """Rows as arrays, sorted, one on a line, with the names of their columns."""
    columns = list(rows[0]) if rows else []
    values = sorted(([row[column] for column in columns] for row in rows), key=_order)
    lines = ",\n  ".join(json.dumps(row) for row in values)
    return f'{{"columns": {json.dumps(columns)}, "rows": [\n  {lines}\n ]}}'


def _order(values: list[Any]) -> list[str]:
    return [str(value).zfill(4) for value in values]


def call_of(row: Row) -> tuple[str, int, Size]:
    return row["family"], row["architecture"], Size(*(row[field] for field in Size._fields))


def shipped_calls() -> Iterator[tuple[str, int, Size]]:
    """Family, architecture and size of every call of the report."""
    for (family, size), architecture in itertools.product(CALLS, TABLE):
        yield family, architecture, size
