"""Jobs of the GPU benchmark in worker processes that crash, hang or lose their device."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from benchmarks.gpu import driver

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
    say(done=True, error="no inputs" if "silent" in job["items"] else None, broken=None)
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
