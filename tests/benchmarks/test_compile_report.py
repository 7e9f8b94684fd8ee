"""The committed table of compiled tiles is complete, within the limits, and equal to a new compilation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import compile_report

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

REPOSITORY = Path(__file__).parents[2]
TABLE = REPOSITORY / "benchmarks" / "results" / "compile.json"
NARROWEST = ("--arithmetic", "bfloat16", "--width", "64")


def rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def case(row: dict[str, Any]) -> compile_report.Case:
    return compile_report.Case(*(row[field] for field in compile_report.Case._fields))


def test_table_has_every_shipped_tile_and_every_kernel_on_every_architecture() -> None:
    table = rows(TABLE)
    assert {case(row) for row in table} == set(compile_report.shipped())
    kernels = {row["kernel"] for row in table}
    for architecture in compile_report.ARCHITECTURES:
        assert {row["kernel"] for row in table if row["architecture"] == architecture} == kernels


def test_every_tile_is_within_the_limits_and_every_spill_has_a_reason() -> None:
    for row in rows(TABLE):
        assert compile_report.within_limits(row), compile_report.format_row(row)
        assert ("reason" in row) == (row["spilled_bytes"] > 0)
        assert row["shared_limit"] == compile_report.SHARED_LIMIT[row["architecture"]]


def test_variants_have_every_kernel_that_differs() -> None:
    found: dict[str, set[tuple[str, str]]] = {}
    for row in rows(TABLE):
        if row["arithmetic"] in ("bfloat16", "float32") and row["family"] != "joint":
            found.setdefault(row["variant"], set()).add((row["family"], row["kernel"]))
    assert found["64 words"] == {pair for pair in found["plain"] if pair[0] != "level_tail"}
    assert found["image_index"] == {pair for pair in found["plain"] if pair[0] != "separable-tiled"}


def test_row_of_a_kernel_compiled_twice_has_the_worse_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spills = {"first": (40, 8), "second": (60, 4)}
    compiled = [
        ("_kernel", {}, SimpleNamespace(asm={"ptx": ptx}, metadata=SimpleNamespace(shared=shared)))
        for ptx, shared in (("first", 100), ("second", 300))
    ]
    monkeypatch.setattr(compile_report, "_registers", lambda ptx, architecture: spills[ptx])
    for order in (compiled, compiled[::-1]):
        monkeypatch.setattr(compile_report, "launches", lambda case, order=order: order)
        (row,) = compile_report.compile_case(compile_report.Case("joint", 90, "bfloat16", 64))
        assert (row["spilled_bytes"], row["registers"], row["shared_bytes"]) == (8, 40, 300)


def run(*arguments: str, program: tuple[str, ...] = ("-m", "benchmarks.compile_report")) -> Any:
    """Run the report without Triton's interpreter, which the other tests use."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", *program, "--processes", "0", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(number, marks=[] if number == 90 else pytest.mark.slow)
        for number in compile_report.ARCHITECTURES
    ],
)
@pytest.mark.parametrize("family", compile_report.FAMILIES)
def test_tile_of_every_kernel_compiles_as_in_the_table(family: str, architecture: int, tmp_path: Path) -> None:
    path = tmp_path / "compile.json"
    done = run("--family", family, "--architecture", str(architecture), *NARROWEST, "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(path)
    expected = [row for row in rows(TABLE) if case(row) in {case(row) for row in found}]
    assert [row["kernel"] for row in found] == [row["kernel"] for row in expected]
    same = json.loads(TABLE.read_text(encoding="utf-8"))["environment"]
    if compile_report.environment() == same:
        assert found == expected


def test_tile_beyond_the_limits_ends_with_status_1() -> None:
    code = "from benchmarks import compile_report\ncompile_report.SHARED_LIMIT[89] = 100\ncompile_report.main()"
    arguments = ("--family", "level_tail", "--architecture", "89", *NARROWEST)
    done = run(*arguments, program=("-c", code))
    assert done.returncode == 1, done.stderr
    assert "EXCEEDS A LIMIT" in done.stdout
