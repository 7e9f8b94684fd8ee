"""The committed table of compiled kernels is complete, within the limits, and equal to a new compilation."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.compile_report import assembly, roofline, table
from benchmarks.compile_report.architectures import TABLE, ctas_per_multiprocessor
from benchmarks.compile_report.assembly import Instruction
from benchmarks.compile_report.cases import ARCHITECTURES, FAMILIES, Case, Size, case_of, shipped
from benchmarks.compile_report.counting import Work, count
from benchmarks.compile_report.driver import Launch

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

REPOSITORY = Path(__file__).parents[2]
COMMITTED = REPOSITORY / "benchmarks" / "results" / "compile.json"

# The most launches of a call whose slabs are one.
MOST_LAUNCHES = {
    "separable": {"forward": 5, "backward": 15},
    "joint": {"forward": 2, "backward": 4, "tail forward": 1, "tail backward": 6},
    "level_tail": {"forward": 1},
}
# Kernels whose main loops run on the wide tensor-core instructions.
WIDE = {
    "separable": {"logits_kernel", "values_kernel", "gradients_kernel", "place_products_kernel"},
    "joint": {"joint_forward"},
    "level_tail": {"level_tail_kernel"},
}


@functools.cache
def committed() -> tuple[dict[str, str], list[table.Row], list[table.Row]]:
    return table.read(COMMITTED)


def test_table_has_every_shipped_case_and_call_and_every_kernel_on_every_architecture() -> None:
    _, kernels, calls = committed()
    assert {case_of(row) for row in kernels} == set(shipped())
    assert {table.call_of(row) for row in calls} == set(table.shipped_calls())
    names = {row["kernel"] for row in kernels}
    for architecture in ARCHITECTURES:
        assert {row["kernel"] for row in kernels if row["architecture"] == architecture} == names


def test_every_kernel_is_within_the_limits() -> None:
    for row in committed()[1]:
        assert table.within_limits(row), table.format_kernel(row)
        assert row["ctas"] >= 1


def test_predictions_follow_from_the_floor_and_never_beat_it() -> None:
    for row in committed()[2]:
        case, size = case_of(row), Size(*(row[field] for field in Size._fields))
        least = sum(roofline.FLOOR[case.family][call] for call in row["call"].split(" + "))
        share = roofline.floor(case, size, least) * 1e6 / row["predicted_us"]
        assert row["predicted_share_of_floor"] == pytest.approx(share, abs=0.01)
        assert share < 1
        assert row["products"] >= least


def test_documented_predictions_are_those_of_the_table() -> None:
    text = (REPOSITORY / "docs" / "kernels.md").read_text(encoding="utf-8")
    found = re.findall(r"\(sm_(\d+)\) \| (\d+) us, (\d+) % \| (\d+) us, (\d+) % \| (\d+) us \|", text)
    assert [int(row[0]) for row in found] == list(ARCHITECTURES)
    calls = {(*table.call_of(row), row["call"]): row for row in committed()[2]}
    for architecture, *numbers in ([int(number) for number in row] for row in found):
        large = [calls["separable", architecture, Size(), call] for call in ("forward", "forward + backward")]
        small = calls["separable", architecture, Size(1, 400, 20), "forward"]
        expected = [part for row in large for part in (row["predicted_us"], 100 * row["predicted_share_of_floor"])]
        assert numbers == pytest.approx([*expected, small["predicted_us"]], abs=0.51)


PTX = """
	ld.global.b32 %r1, [%rd1];
$L__BB0_1:
	ld.global.v4.b32 {%r1, %r2}, [%rd1 + 0];
	bar.sync 	0;
$L__BB0_2:
	cp.async.cg.shared.global [ %r93 + 0 ], [ %rd55 + 0 ], 0x10, %r94;
	bar.sync 	0;
	wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%r1,%r2}, %rd2, %rd3, 0, 1, 1, 0, 0;
	wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%r1,%r2}, {%r3,%r4}, %rd3, 0, 1, 1, 0;
	mbarrier.try_wait.parity.shared::cta.b64 complete, [%r114], %r53;
	@%p1 bra 	$L__BB0_2;
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r5 }, { %r6 }, { %r7 }, { %r5 };
	@%p2 bra 	$L__BB0_1;
	bra.uni 	$L__BB0_3;
$L__BB0_3:
	mov.b32 	%r196, 67634320;
$L__BB0_4:
	@%p87 tcgen05.mma.cta_group::1.kind::f16 [ %r664 + 0 ], %rd174, %rd175, %r196, %p86;
	@%p3 bra 	$L__BB0_4;
	ret;
"""


def test_loops_of_ptx_are_read_without_the_loops_inside() -> None:
    inner, outer, last = assembly.loops(PTX)
    wide = Instruction("wgmma", 64, 256, 16)
    assert inner == (Counter({wide: 1, wide._replace(in_registers=True): 1}), 1, 0, 1)
    assert outer == (Counter({Instruction("mma.sync", 16, 8, 16): 1}), 1, 1, 0)
    assert last == (Counter({Instruction("tcgen05", 64, 32, 16): 1}), 0, 0, 0)
    assert assembly.hot_loops(PTX) == [inner, last, outer]


def test_kernel_without_tensor_cores_has_the_loop_with_most_loads_as_its_hot_loop() -> None:
    ptx = "$L__BB0_1:\nbra $L__BB0_1;\n$L__BB0_2:\nld.global.b32 %r1, [%rd1];\n@%p1 bra $L__BB0_2;\n"
    assert assembly.hot_loops(ptx) == [(Counter(), 0, 1, 0)]
    assert assembly.hot_loops("ret;") == []


@pytest.mark.parametrize(
    ("architecture", "registers", "warps", "shared", "tensor_memory", "ctas"),
    [
        (90, 128, 8, 0, 0, 2),  # registers
        (90, 129, 8, 0, 0, 1),
        (86, 32, 8, 0, 0, 6),  # threads
        (90, 32, 1, 0, 0, 32),  # CTAs
        (90, 64, 4, 98304, 0, 2),  # shared memory
        (100, 64, 4, 0, 256, 2),  # tensor memory
    ],
)
def test_resident_ctas_follow_from_the_scarcest_resource(
    architecture: int, registers: int, warps: int, shared: int, tensor_memory: int, ctas: int
) -> None:
    assert ctas_per_multiprocessor(architecture, registers, warps, shared, tensor_memory) == ctas


@pytest.mark.parametrize(
    ("architecture", "instruction", "share"),
    [
        (90, Instruction("wgmma", 64, 128, 16), 1.0),
        (90, Instruction("wgmma", 64, 16, 16), 0.4),  # reads 80 rows of 32 bytes in 20 cycles, multiplies in 8
        (90, Instruction("wgmma", 64, 16, 16, True), 1.0),
        (90, Instruction("mma.sync", 16, 8, 16), 0.62),
        (80, Instruction("mma.sync", 16, 8, 16), 1.0),
        (100, Instruction("tcgen05", 128, 256, 16), 1.0),
        (100, Instruction("tcgen05", 64, 256, 16), 0.5),
    ],
)
def test_rate_of_an_instruction_is_limited_by_shared_memory(
    architecture: int, instruction: Instruction, share: float
) -> None:
    assert roofline.efficiency(architecture, instruction) == pytest.approx(share)


def compiled(shared: int = 0, ptx: str = "ret;") -> Any:
    return SimpleNamespace(
        asm={"ptx": ptx, "cubin": b""}, metadata=SimpleNamespace(shared=shared, num_warps=4, tmem_size=0)
    )


def test_predicted_time_rounds_the_work_of_the_busiest_multiprocessor_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "resources", lambda cubin: (32, 0))
    case, gpu = Case("separable", 90, "bfloat16", 512), TABLE[90]
    work = Work("kernel", flop=10**9)
    for programs, rounds in ((132, 1), (133, 2)):
        launch = Launch("kernel", programs, 0, 0, {}, compiled())
        (prediction,) = roofline.predict(case, [launch], [work])
        # Without tensor-core instructions at the rate of float32.
        each = work.flop / programs / (gpu.float32 * 1e12 / gpu.multiprocessors)
        assert prediction.seconds == pytest.approx(roofline.LAUNCH + rounds * each)
        assert prediction.bound == "tensor"


def test_predicted_time_of_an_operator_is_bound_by_its_bytes_or_its_products() -> None:
    case, gpu = Case("separable", 90, "bfloat16", 512), TABLE[90]
    for tensors, flop, bound in ((10**9, 0, "memory"), (0, 10**12, "tensor"), (10, 10, "launch")):
        (prediction,) = roofline.predict(case, [Launch("mm", 0, tensors, flop, {}, None)], [])
        seconds = max(tensors / (gpu.memory * 1e9), flop / (roofline.SUSTAINED * gpu.half * 1e12))
        assert prediction.seconds == pytest.approx(roofline.LAUNCH + seconds, rel=1e-3)
        assert prediction.bound == bound


def test_counted_work_is_that_of_the_tiles() -> None:
    channels = 2048 + 1000 + 8
    (work,) = count(Case("level_tail", 90, "bfloat16", 64), Size(1, 128, 20))["forward"]
    assert work.kernel == "level_tail_kernel"
    assert work.flop >= 2 * 128 * 64 * channels
    assert work.flop % (2 * 64 * 16 * 16) == 0
    assert work.stored == 2 * 128 * channels  # every result once, in bfloat16


def test_row_of_a_kernel_compiled_twice_has_the_worse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "resources", lambda cubin: {b"a": (40, 8), b"b": (60, 4)}[cubin])
    launches = []
    for cubin, shared in ((b"a", 100), (b"b", 60000)):
        result = compiled(shared)
        result.asm["cubin"] = cubin
        launches.append(Launch("kernel", 1, 0, 0, {"ROWS": 64, "num_warps": 4}, result))
    for order in (launches, launches[::-1]):
        (row,) = table.kernel_rows(Case("joint", 90, "bfloat16", 64), {"forward": order})
        assert (row["stack_bytes"], row["registers"], row["shared_bytes"], row["ctas"]) == (8, 40, 60000, 3)
        assert row["tile"] == "rows=64 num_warps=4"


def run(*arguments: str) -> Any:
    """Run Python without Triton's interpreter, which the other tests use."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


COMPILE = """
import json, sys
from benchmarks.compile_report import cases, table
case = cases.Case(*json.loads(sys.argv[1]))
calls = cases.launches(case)
launches = {name: [launch.kernel for launch in call] for name, call in calls.items()}
print(json.dumps([launches, table.kernel_rows(case, calls)]))
"""


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(number, marks=[] if number == 90 else pytest.mark.slow) for number in ARCHITECTURES],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_compiles_as_in_the_table(family: str, architecture: int) -> None:
    """One case of every kernel, so that lost instructions, spills and further launches are seen at once."""
    case = Case(family, architecture, "bfloat16", 512)
    done = run("-c", COMPILE, json.dumps(case))
    assert done.returncode == 0, done.stderr
    launches, rows = json.loads(done.stdout)
    assert set(launches) == set(MOST_LAUNCHES[family])
    for call, most in MOST_LAUNCHES[family].items():
        assert len(launches[call]) <= most, f"{call} starts {launches[call]}"
    for row in rows:
        assert table.within_limits(row), table.format_kernel(row)
    kind = {90: "wgmma", 100: "tcgen05"}.get(architecture, "mma.sync")
    kernels = {row["kernel"]: row for row in rows}
    for name in WIDE[family]:
        for shapes, *_ in kernels[name]["loops"]:
            assert all(f" {kind} " in f" {shape} " for shape in shapes.split(", ")), table.format_kernel(
                kernels[name]
            )
    environment, expected, _ = committed()
    if environment == table.environment():
        order = sorted((row for row in expected if case_of(row) == case), key=lambda row: row["kernel"])
        assert sorted(rows, key=lambda row: row["kernel"]) == order


ONE_CASE = (
    *("--family", "level_tail", "--architecture", "89", "--arithmetic", "bfloat16", "--variant", "plain"),
    *("--only", "kernels"),
)


def test_command_writes_the_rows_of_its_processes(tmp_path: Path) -> None:
    path = tmp_path / "compile.json"
    done = run("-m", "benchmarks.compile_report", *ONE_CASE, "--processes", "1", "--json", str(path))
    assert done.returncode == 0, done.stderr
    environment, rows, calls = table.read(path)
    assert environment == table.environment()
    assert {case_of(row) for row in rows} == {Case("level_tail", 89, "bfloat16", 512)}
    assert calls == []


def test_command_ends_with_status_1_beyond_a_limit() -> None:
    code = """
from benchmarks.compile_report import __main__, table
table.SPILL_LIMIT = -1
__main__.main()
"""
    done = run("-c", code, *ONE_CASE, "--processes", "0")
    assert done.returncode == 1, done.stderr
    assert "EXCEEDS A LIMIT" in done.stdout


def test_rows_of_other_cases_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "compile.json"
    kernels, calls = committed()[1:]
    first = [row for row in kernels if row["family"] == "level_tail"][:1]
    table.write(path, kernels[:3], calls[:1])
    table.write(path, first, [])
    assert [row for row in table.read(path)[1] if row not in first] == kernels[:3]
    assert table.read(path)[2] == calls[:1]
