"""Description of the machine, the device and the software of a run."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu,memory.total"


def host(arguments: dict[str, Any]) -> dict[str, Any]:
    """Command, commit, machine and packages; does not import torch."""
    return {
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "arguments": arguments,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": _git("status", "--porcelain", "--", "cmsa_fast", "benchmarks"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: _version(name) for name in ("torch", "triton", "numpy", "matplotlib")},
        "nvidia_smi": _nvidia_smi(),
    }


def device(name: str) -> dict[str, Any]:
    """The device's properties as torch reports them; runs in a worker process."""
    import torch

    figures: dict[str, Any] = {
        "name": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }
    if name != "cpu":
        properties = torch.cuda.get_device_properties(name)
        figures |= {
            "name": properties.name,
            "capability": list(torch.cuda.get_device_capability(name)),
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": properties.total_memory / 2**30,
            "l2_mib": properties.L2_cache_size / 2**20,
            "cudnn": torch.backends.cudnn.version(),
        }
    return figures


def _git(*arguments: str) -> str | None:
    """Output of a git command in the checkout; None without git or a repository."""
    return _output(["git", "-C", str(Path(__file__).parents[2]), *arguments])


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> dict[str, str] | None:
    output = _output(["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"])
    if not output:
        return None
    return dict(zip(_QUERY.split(","), output.splitlines()[0].split(", "), strict=False))
