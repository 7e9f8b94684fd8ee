"""Jobs of the GPU benchmark in worker processes that crash, hang or lose their device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import driver, plan, timing

WORKER = """
import json, sys, time
for line in sys.stdin:
    job = json.loads(line)
    def say(**message):
        print(json.dumps(message), flush=True)
    for item in job["items"]:
        say(step=item, limit_s=1.0)
        if item == "crash":
            sys.exit("crashed")
        if item == "hang":
            time.sleep(60)
        if item != "silent":
            say(record={"name": item, "status": "measured", "reason": None})
        if item == "break":
            say(done=True, error=None, broken="the device is gone")
            sys.exit()
    error = {"status": "failed", "reason": "no inputs"} if "silent" in job["items"] else None
    say(done=True, error=error, broken=None)
"""


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["a", "crash", "b"], {"a": None, "crash": "crashed", "b": None}),
        (["hang", "b"], {"hang": "no answer within 1 s", "b": None}),
        (["a", "break", "b"], {"a": None, "break": None, "b": None}),
        (["a", "silent"], {"a": None, "silent": "no inputs"}),
    ],
)
def test_worker_that_dies_loses_one_item(items: list[str], expected: dict[str, str | None]) -> None:
    reasons = reasons_of(items, driver.Deadline(30))
    assert set(reasons) == set(expected)
    for name, reason in expected.items():
        assert reasons[name] is None if reason is None else reason in str(reasons[name])


def reasons_of(items: list[str], deadline: driver.Deadline) -> dict[str, str | None]:
    """Do a job; the reason of every record, by its name."""
    reasons: dict[str, str | None] = {}

    def add(_: str, record: dict[str, Any]) -> None:
        assert record["name"] not in reasons
        reasons[record["name"]] = record["reason"]

    worker = driver.WorkerProcess({}, (sys.executable, "-c", WORKER))
    try:
        driver.do({"kind": "ceilings", "device": "cpu", "items": items}, worker, deadline, add)
    finally:
        worker.stop()
    return reasons


def test_deadline_ends_a_running_job() -> None:
    reasons = reasons_of(["a", "hang", "b"], driver.Deadline(0.8))
    assert set(reasons) == {"a", "hang", "b"}
    assert reasons["a"] is None
    assert "minutes was reached" in str(reasons["hang"])
    assert "minutes was reached" in str(reasons["b"])


OUT_OF_MEMORY = """
import pathlib, sys, torch
from benchmarks.gpu import correctness, worker
def measure(job, case):
    count = pathlib.Path(case["count"])
    count.write_text(count.read_text() + "x" if count.is_file() else "x")
    if len(count.read_text()) <= case["failures"]:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return {"status": "passed", "reason": None}
correctness.measure = measure
worker.main()
"""


def test_item_out_of_memory_is_repeated_alone_then_recorded(tmp_path: Path) -> None:
    failures = {"a": 0, "once": 1, "always": 9}
    cases = {name: {"count": str(tmp_path / name), "failures": number} for name, number in failures.items()}
    job = {"kind": "correctness", "device": "cpu", "operation": "joint", "form": "torch", "dtype": "float32"}
    records: list[tuple[str, str]] = []

    def run(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return driver.do_all(
            jobs,
            1,
            {},
            driver.Deadline(60),
            lambda _, record: records.append((record["case"], record["status"])),
            (sys.executable, "-c", OUT_OF_MEMORY),
        )

    again = run([{**job, "items": list(cases), "cases": cases}])
    assert records == [("a", "passed")]
    assert [one["items"] for one in again] == [["once"], ["always"]]
    assert run(again) == []
    assert sorted(records[1:]) == [("always", "out of memory"), ("once", "passed")]


def test_only_the_passes_out_of_memory_are_repeated() -> None:
    script = """
import json
job = json.loads(input())
for part in job["passes"]:
    status = "out of memory" if "backward" in part else "measured"
    print(json.dumps({"record": {"form": "torch", "pass": part, "status": status}}))
print(json.dumps({"done": True, "error": None, "broken": None}), flush=True)
"""
    job = {**plan.speed("cpu", quick=True)[0], "items": ["torch"]}
    worker = driver.WorkerProcess({}, (sys.executable, "-c", script))
    records: list[dict[str, Any]] = []
    try:
        again = driver.do(job, worker, driver.Deadline(30), lambda _, record: records.append(record))
    finally:
        worker.stop()
    assert [record["pass"] for record in records] == ["forward"]
    assert [(one["items"], one["passes"]) for one in again] == [(["torch"], ["backward", "forward + backward"])]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("Tried to allocate 4 GiB"), "out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out of memory"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "failed"),
    ],
)
def test_errors_of_memory_have_their_own_status(error: Exception, status: str) -> None:
    assert timing.outcome(error)["status"] == status
