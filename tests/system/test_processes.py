"""OpenMP settings and torchrun groups: environment, devices, time limit, failure of a process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from torch import distributed

from cmsa_fast.system.processes import ALONE, joined_processes

PROGRAM = """
import os, signal, sys
from cmsa_fast.system.processes import joined_processes

with joined_processes() as processes:
    assert processes.gather(processes.rank) == [0, 1]
    if processes.rank == 1:
        if sys.argv[1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise SystemExit(3)
    try:
        processes.gather("waiting")
    except OSError as error:
        print(error)
"""


ENTRY_POINTS = {
    "command": "from cmsa_fast.cli import main; main(['train', '--device', 'none'])",
    "tests": "import sys; sys.path.insert(0, 'tests'); import conftest",
    "benchmarks": "import benchmarks.level",
}
SHOW_WHEN_TORCH_IS_IMPORTED = """
import os, sys

class Probe:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            print("spin count", os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Probe)
"""


@pytest.mark.parametrize(
    ("entry", "given", "expected"),
    [
        *((entry, {}, "30000") for entry in ENTRY_POINTS),
        ("command", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("command", {"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
    ],
)
def test_openmp_is_configured_before_torch_is_loaded(entry: str, given: dict[str, str], expected: str) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", SHOW_WHEN_TORCH_IS_IMPORTED + ENTRY_POINTS[entry]],
        cwd=REPOSITORY,
        env=environment | given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == f"spin count {expected}", done.stderr


@pytest.mark.parametrize("end", ["failed", "killed"])
def test_waiting_process_fails_when_another_one_ended(end: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, end],
            env={**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        shown = started[0].communicate(timeout=120)[0]
        assert started[1].wait(timeout=60) != 0
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert "Process 0 of 2 stops, because another one ended" in shown


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Simulates process 1 of 2 on a machine with one CUDA device; records the calls of PyTorch."""
    calls: dict[str, Any] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.update(device=device))
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, **options: calls.update(options))
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    return calls


def test_processes_on_the_cpu_need_no_cuda_devices_and_wait_for_days(group: dict[str, Any]) -> None:
    with joined_processes("cpu") as processes:
        assert (processes.rank, processes.count) == (1, 2)
    assert "device" not in group
    assert group["timeout"] >= timedelta(days=7)
    with pytest.raises(ValueError, match="more processes than there are CUDA devices"):
        joined_processes("auto").__enter__()


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_processes() as processes:
        assert processes is ALONE
        assert processes.gather("x") == ["x"]
