"""Compile every tile of every Triton kernel for every supported architecture, without a GPU.

    python -m benchmarks.compile_report --json benchmarks/results/compile.json

Each launcher runs on meta tensors with a substitute for Triton's driver, so it compiles exactly what a launch on
that GPU would compile. The report lists for each kernel its shared memory and the limit of a block, its registers,
and the bytes of registers that it spills. The exit status is 1 if a kernel exceeds the limit of shared memory or
spills more than 256 bytes.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

# Limit of a block's shared memory in bytes, by compute capability times ten.
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
ARCHITECTURES = tuple(SHARED_LIMIT)
SPILL_LIMIT = 256

ARITHMETICS = ("bfloat16", "float16", "tf32", "float32")
WIDTHS = (64, 128, 256, 512)
_PLACES, _WORDS, _BATCH = 1600, 20, 2
_WORD_LIMIT = 64

# "plain" has 20 words and one image for each expression.
VARIANTS = ("plain", "64 words", "image_index")
_FAMILIES_OF = {
    "64 words": ("separable",),
    "image_index": ("separable", "level_tail"),
}
_CHANNELS = 2008  # the widest level of the released network

_TILE_CONSTANTS = ("OWN", "OTHER", "ROWS", "KEYS", "CHUNK", "CHANNELS", "VALUES", "SLICE")

# Reasons for spilled registers. Kernels with one of these words in their name have the first.
_WIDE = "a [rows, width] block of sums in float32 takes half of the registers and more"
_MANY = "several blocks of [rows, keys] and [rows, words] in float32 are needed at once"
_WIDE_KERNELS = ("mean", "query", "key_gradient", "value_gradient", "joint", "tail")


class Case(NamedTuple):
    """One compilation of all kernels of a family.

    Attributes:
        family: One of FAMILIES.
        architecture: Compute capability times ten.
        arithmetic: One of ARITHMETICS; "tf32" and "float32" are float32 input under PyTorch's two settings.
        width: Width of queries, keys and values.
        variant: One of VARIANTS.
    """

    family: str
    architecture: int
    arithmetic: str
    width: int
    variant: str = VARIANTS[0]


def _empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _index(variant: str) -> torch.Tensor | None:
    return _empty(torch.int64, _BATCH) if variant == "image_index" else None


def _separable(width: int, dtype: torch.dtype, variant: str) -> None:
    from cmsa_fast.kernels.separable_attention.state import Sizes
    from cmsa_fast.kernels.separable_attention.triton import schedule

    words = _WORD_LIMIT if variant == "64 words" else _WORDS
    features = [_empty(dtype, _BATCH, size, width) for size in [_PLACES] * 3 + [words] * 3]
    weight, index = _empty(torch.float32, _BATCH, words), _index(variant)
    attended, state = schedule.forward(features, weight, index)
    schedule.backward(torch.empty_like(attended), attended, index, Sizes.of(features), state)


def _joint(width: int, dtype: torch.dtype, variant: str) -> None:
    from cmsa_fast.kernels.joint_attention.triton.backward import launch_joint_backward
    from cmsa_fast.kernels.joint_attention.triton.forward import launch_joint_forward
    from cmsa_fast.kernels.joint_attention.triton.projection import launch_tail_backward, launch_tail_forward

    tokens, keys = _PLACES * _WORDS, _PLACES // 4 * _WORDS // 2
    query, key, value = (_empty(dtype, _BATCH, size, width) for size in (tokens, keys, keys))
    mask = _empty(torch.bool, _BATCH, keys)
    attended, logsumexp = launch_joint_forward(query, key, value, mask, 1.0)
    launch_joint_backward(attended, query, key, value, mask, 1.0, attended, logsumexp)

    words = _empty(torch.bool, _BATCH, _WORDS)
    tokens_of_words = attended.unflatten(1, (_PLACES, _WORDS))
    projected = (tokens_of_words, _empty(dtype, _CHANNELS, width), _empty(dtype, _CHANNELS))
    result = launch_tail_forward(*projected, words)
    launch_tail_backward(result, *projected, words)


def _level_tail(width: int, dtype: torch.dtype, variant: str) -> None:
    from cmsa_fast.kernels.separable_attention.triton.projection import launch_level_tail

    visual, words, coordinates = 2048, 1000, 8
    launch_level_tail(
        _empty(dtype, _BATCH, _PLACES, width),
        _empty(dtype, visual + words + coordinates, width),
        _empty(dtype, _BATCH, visual, _PLACES).mT,
        _empty(dtype, _BATCH, words),
        _empty(dtype, coordinates, _PLACES),
        _index(variant),
    )


FAMILIES: dict[str, Callable[[int, torch.dtype, str], None]] = {
    "separable": _separable,
    "joint": _joint,
    "level_tail": _level_tail,
}


class _Driver:
    """The part of Triton's driver interface that a launch uses."""

    def __init__(self, architecture: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        # Triton caches compiled kernels by device, without regard to the architecture.
        return self.target.arch

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


@contextlib.contextmanager
def _compiling_for(architecture: int) -> Iterator[list[tuple[str, dict[str, Any], Any]]]:
    """Make launches compile for the architecture without running; yields kernel names, options and results."""
    import triton

    compiled: list[tuple[str, dict[str, Any], Any]] = []
    run = triton.JITFunction.run

    def compile_only(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        result = run(kernel, *arguments, grid=grid, warmup=True, **options)
        # One kernel may serve several purposes, which its constant OF names.
        compiled.append(("_".join([kernel.fn.__name__, *options.get("OF", "").split()]), options, result))

    triton.runtime.driver.set_active(_Driver(architecture))
    triton.JITFunction.run = compile_only
    try:
        yield compiled
    finally:
        triton.JITFunction.run = run
        triton.runtime.driver.set_active(None)


def _registers(ptx: str, architecture: int) -> tuple[int, int]:
    """Registers per thread and spilled bytes (the larger of spill stores and spill loads)."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    target = re.search(rf"\.target (sm_{architecture}\w?)\b", ptx)
    if target is None:
        raise RuntimeError(f"Triton's PTX is not for sm_{architecture}.")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        # Triton ships two assemblers; only the second reads the newest PTX.
        for assembler in ("ptxas", "ptxas-blackwell"):
            output = Path(scratch) / "kernel.cubin"
            files = (str(source), "-o", str(output))
            command = [str(folder / assembler), "-v", f"--gpu-name={target[1]}", *files]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
        else:
            raise RuntimeError(f"ptxas failed for {target[1]}: {done.stderr}")
    used = re.search(r"Used (\d+) registers", done.stderr)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    if used is None or spilled is None:
        raise RuntimeError(f"ptxas -v printed no registers or spills: {done.stderr}")
    return int(used[1]), int(spilled[1])


def launches(case: Case) -> list[tuple[str, dict[str, Any], Any]]:
    """Every kernel that a case launches, in order: name, options and compiled kernel."""
    dtype = torch.float32 if case.arithmetic == "tf32" else getattr(torch, case.arithmetic)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if case.arithmetic == "tf32" else "highest")
    try:
        with _compiling_for(case.architecture) as compiled:
            FAMILIES[case.family](case.width, dtype, case.variant)
    finally:
        torch.set_float32_matmul_precision(before)
    return compiled


def compile_case(case: Case) -> list[dict[str, Any]]:
    """One row of the report for each kernel of the case."""
    rows: dict[str, dict[str, Any]] = {}
    for name, options, result in launches(case):
        registers, spilled = _registers(result.asm["ptx"], case.architecture)
        row = {
            **case._asdict(),
            "kernel": name.strip("_"),
            "tile": {
                key.lower(): value
                for key, value in sorted(options.items())
                if key in _TILE_CONSTANTS or key.startswith("num_")
            },
            "shared_bytes": result.metadata.shared,
            "shared_limit": SHARED_LIMIT[case.architecture],
            "registers": registers,
            "spilled_bytes": spilled,
        }
        if spilled:
            row["reason"] = _WIDE if any(part in name for part in _WIDE_KERNELS) else _MANY
        # A kernel launched on places and on words is compiled twice. The row describes the one that spills more,
        # with the larger shared memory of the two.
        other = rows.get(name, row)
        worse = row if other["spilled_bytes"] < spilled else other
        shared = max(row["shared_bytes"], other["shared_bytes"])
        rows[name] = {**worse, "shared_bytes": shared}
    return list(rows.values())


def within_limits(row: dict[str, Any]) -> bool:
    return row["shared_bytes"] <= row["shared_limit"] and row["spilled_bytes"] <= SPILL_LIMIT


def format_row(row: dict[str, Any]) -> str:
    tile = " ".join(f"{key}={value}" for key, value in row["tile"].items())
    text = (
        f"sm_{row['architecture']:<4}{row['arithmetic']:10}{row['width']:>4}  {row['variant']:12}"
        f"{row['kernel']:30}"
        f"{row['shared_bytes']:>7} of {row['shared_limit']} B{row['registers']:>5} registers"
        f"{row['spilled_bytes']:>6} B spilled  {tile}"
    )
    return text if within_limits(row) else text + "  EXCEEDS A LIMIT"


def _compile_quietly(case: Case) -> list[dict[str, Any]]:
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    return compile_case(case)


def collect(cases: Sequence[Case], processes: int) -> list[dict[str, Any]]:
    """Rows of all cases, printed as they are made; with 0 processes they are compiled in this one."""
    rows = []
    with contextlib.ExitStack() as stack:
        results: Iterable[list[dict[str, Any]]] = map(_compile_quietly, cases)
        if processes:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(processes))
            results = pool.imap(_compile_quietly, cases)
        for case_rows in results:
            for row in case_rows:
                print(format_row(row), flush=True)
            rows += case_rows
    return rows


def environment() -> dict[str, str]:
    import triton

    return {"torch": torch.__version__, "triton": triton.__version__}


def _case(row: dict[str, Any]) -> Case:
    return Case(*(row[field] for field in Case._fields))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Update the rows of these cases in the file; other shipped cases stay if made by the same versions."""
    kept = []
    if path.is_file():
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["environment"] == environment():
            compiled = {_case(row) for row in rows}
            others = set(shipped()) - compiled
            kept = [row for row in table["rows"] if _case(row) in others]
    rows = sorted(
        kept + rows,
        key=lambda row: (*(str(row[field]).zfill(3) for field in Case._fields), row["kernel"]),
    )
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    path.write_text(
        f'{{\n "environment": {json.dumps(environment())},\n "rows": [\n  {lines}\n ]\n}}\n',
        encoding="utf-8",
    )


def shipped() -> Iterator[Case]:
    """Every case of the report.

    In float32 one tile serves all widths, so only the narrowest and the widest are compiled. Variants other than
    "plain" are compiled at the largest width, in bfloat16 and float32.
    """
    for family, architecture, arithmetic in itertools.product(FAMILIES, ARCHITECTURES, ARITHMETICS):
        widths = WIDTHS if arithmetic in ("bfloat16", "float16") else (WIDTHS[0], WIDTHS[-1])
        yield from (Case(family, architecture, arithmetic, width) for width in widths)
        if arithmetic in ("bfloat16", "float32"):
            for variant, families in _FAMILIES_OF.items():
                if family in families:
                    yield Case(family, architecture, arithmetic, WIDTHS[-1], variant)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="file whose rows are updated")
    choices = (FAMILIES, ARCHITECTURES, ARITHMETICS, WIDTHS, VARIANTS)
    for name, values in zip(Case._fields, map(tuple, choices), strict=True):
        parser.add_argument(f"--{name}", nargs="+", choices=values, default=values, type=type(values[0]))
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="number of processes; 0 compiles in this one",
    )
    arguments = parser.parse_args()
    if os.environ.pop("TRITON_INTERPRET", None):
        print("TRITON_INTERPRET is ignored: kernels are only compiled.", file=sys.stderr)
    cases = [
        case for case in shipped() if all(getattr(case, name) in getattr(arguments, name) for name in Case._fields)
    ]
    rows = collect(cases, arguments.processes)
    if arguments.json:
        write(arguments.json, rows)
    exceeding = [row for row in rows if not within_limits(row)]
    print(f"{len(rows)} kernels compiled, {len(exceeding)} exceed a limit.")
    sys.exit(bool(exceeding))


if __name__ == "__main__":
    main()
