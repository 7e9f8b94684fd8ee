"""Reads compiled kernels: loops in PTX, and registers and stack of the machine code.

Triton lets ptxas unroll no loop, so a loop in PTX is one in the machine code.
"""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

_LABEL = re.compile(r"^(\$L__BB\w+):", re.MULTILINE)
_BRANCH = re.compile(r"\bbra(?:\.uni)?\s+(\$L__BB\w+);")
_MMA = re.compile(
    r"\b(?:(?P<sync>mma\.sync)\.aligned\.|(?P<wgmma>wgmma)\.mma_async\.sync\.aligned\.)m(?P<m>\d+)n(?P<n>\d+)k(?P<k>\d+)"
    r"(?P<rest>[^;]*);"
)
_TCGEN05 = re.compile(r"\btcgen05\.mma\.cta_group::(\d)\.kind::(\w+)[^;]*?,\s*(%r\d+),\s*%p\d+;")
_BARRIER = re.compile(r"\b(?:bar\.sync|barrier\.sync|barrier\.cta\.sync)\b")
_ASYNCHRONOUS = re.compile(r"\b(?:cp\.async\.c[ag]|cp\.async\.bulk\.tensor)\b")
_PLAIN_LOAD = re.compile(r"\bld\.global\b")


class Instruction(NamedTuple):
    """A tensor-core instruction.

    Attributes:
        kind: "mma.sync", "wgmma" or "tcgen05".
        rows, columns, depth: Its m, n and k.
        in_registers: Whether a wgmma reads its first operand from registers, not from shared memory.
    """

    kind: str
    rows: int
    columns: int
    depth: int
    in_registers: bool = False

    def __str__(self) -> str:
        suffix = " (registers)" if self.in_registers else ""
        return f"{self.kind} m{self.rows}n{self.columns}k{self.depth}{suffix}"

    @property
    def flop(self) -> int:
        return 2 * self.rows * self.columns * self.depth


class Loop(NamedTuple):
    """What one iteration of a loop executes per warp or warp group, loops within it left out.

    Attributes:
        instructions: Number of each tensor-core instruction.
        barriers: Barriers of the whole CTA.
        plain_loads: Loads from global memory that are neither cp.async nor TMA, so that the loop waits for them.
        copies: Copies by cp.async or TMA.
    """

    instructions: Counter[Instruction]
    barriers: int
    plain_loads: int
    copies: int

    @property
    def flop(self) -> int:
        return sum(instruction.flop * number for instruction, number in self.instructions.items())


def loops(ptx: str) -> list[Loop]:
    """Every loop of a kernel, in the order of their ends."""
    starts = {match[1]: match.start() for match in _LABEL.finditer(ptx)}
    ends: dict[int, int] = {}
    for match in _BRANCH.finditer(ptx):
        start = starts[match[1]]
        if start < match.start():
            ends[start] = max(match.end(), ends.get(start, 0))
    found = []
    for start, end in sorted(ends.items(), key=lambda loop: loop[1]):
        inner = sorted((a, b) for a, b in ends.items() if start <= a and b <= end and (a, b) != (start, end))
        body, position = "", start
        for first, last in inner:
            body += ptx[position : max(position, first)]
            position = max(position, last)
        found.append(_read(body + ptx[position:end], ptx))
    return found


def hot_loops(ptx: str) -> list[Loop]:
    """The loops with tensor-core instructions, most FLOP per iteration first.

    Without any, the loop with the most loads; [] for a kernel without a loop.
    """
    every = loops(ptx)
    tensor = sorted((loop for loop in every if loop.flop), key=lambda loop: -loop.flop)
    return tensor or sorted(every, key=lambda loop: -(loop.plain_loads + loop.copies))[:1]


def instructions(body: str, ptx: str | None = None) -> Counter[Instruction]:
    """Number of each tensor-core instruction in a part of a kernel's PTX."""
    found: Counter[Instruction] = Counter()
    for match in _MMA.finditer(body):
        kind = "wgmma" if match["wgmma"] else "mma.sync"
        # The operands of a wgmma are {accumulators}, then {registers} or a descriptor.
        after = match["rest"].partition("}")[2]
        in_registers = kind == "wgmma" and after.lstrip(", ").startswith("{")
        rows, columns, depth = (int(size) for size in match.group("m", "n", "k"))
        found[Instruction(kind, rows, columns, depth, in_registers)] += 1
    for match in _TCGEN05.finditer(body):
        found[_tcgen05(match, ptx or body)] += 1
    return found


def _read(body: str, ptx: str) -> Loop:
    return Loop(
        instructions(body, ptx),
        len(_BARRIER.findall(body)),
        len(_PLAIN_LOAD.findall(body)),
        len(_ASYNCHRONOUS.findall(body)),
    )


def _tcgen05(match: re.Match[str], ptx: str) -> Instruction:
    """The shape of a tcgen05.mma, from its instruction descriptor: bits 17-22 hold n / 8, bits 24-28 m / 16."""
    value = re.search(rf"\bmov\.b32\s+{match[3]}, (-?\d+);", ptx)
    if value is None:
        raise RuntimeError(f"The instruction descriptor {match[3]} of a tcgen05.mma is no constant.")
    descriptor = int(value[1])
    depth = {"f16": 16, "tf32": 8}[match[2]]
    return Instruction("tcgen05", (descriptor >> 24 & 31) * 16, (descriptor >> 17 & 63) * 8, depth)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes of stack per thread, which hold spilled registers."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    used = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    if used is None:
        raise RuntimeError(f"cuobjdump printed no registers: {done.stdout}{done.stderr}")
    return int(used[1]), int(used[2])
