"""The parent's side of the worker processes: who does what, how long it may take, and what is left undone."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from . import plan
from .plan import Job

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "benchmarks.gpu.worker")
_START_S = 120.0  # for a worker to import torch and say its first word

# on_record(job, record)
OnRecord = Callable[[Job, dict[str, Any]], None]


class Deadline:
    """When all must be done."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()

    def reason(self) -> str:
        return f"the time of {self.seconds / 60:.3g} minutes was spent"


class WorkerDied(Exception):
    """A worker ended, or was ended because it took too long."""


class Interrupted(Exception):
    """The whole run is being ended: no worker may start again."""


class WorkerProcess:
    """One worker, started when first needed."""

    def __init__(self, environment: dict[str, str], command: Sequence[str] = COMMAND) -> None:
        inherited = {
            name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"
        }
        self._environment = inherited | environment
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._log: IO[str] | None = None
        self._closed = False

    def send(self, job: Job) -> None:
        """Give a worker its job."""
        if self._closed:
            raise Interrupted
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None  # `_start` asked for a pipe
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerDied(f"the worker ended: {self._last_words()}") from error

    def hear(self, limit_s: float) -> dict[str, Any]:
        """Its next message.

        Raises:
            WorkerDied: it ended, or said nothing for `limit_s` seconds and was ended.
        """
        try:
            line = self._lines.get(timeout=max(limit_s, 0.01))
        except queue.Empty:
            self.stop()
            raise WorkerDied(f"no answer within {limit_s:.0f} s") from None
        if self._closed:
            raise Interrupted
        if line is None:
            code = self._process.wait() if self._process is not None else None
            words = self._last_words()
            self.stop()
            raise WorkerDied(f"the worker ended with status {code}: {words}")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """End the process for good, from another thread than that which uses it."""
        self._closed = True
        with contextlib.suppress(ProcessLookupError):
            if self._process is not None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the process, if there is one; `send` starts another."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # with what its libraries started
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            with contextlib.suppress(OSError):  # what was not read any more
                self._process.__exit__(None, None, None)
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (`stop` closes it)
        self._lines = queue.Queue()
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            process_group=0,
        )
        threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True).start()

    @staticmethod
    def _read(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            for line in process.stdout:
                lines.put(line)
        lines.put(None)

    def _last_words(self) -> str:
        if self._log is None:
            return "it said nothing"
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return lines[-1][:400] if lines else "it said nothing"


def do(job: Job, worker: WorkerProcess, deadline: Deadline, on_record: OnRecord) -> None:
    """A job from beginning to end: every record that it owes is given, measured or with the reason why not."""
    owed = plan.keys(job)
    items: list[str] = list(job["items"])

    def take(record: dict[str, Any]) -> None:
        for item, key in owed:
            if all(record.get(name, value) == value for name, value in key.items()):
                owed.remove((item, key))
                record = {**key, **record}
                break
        on_record(job, record)

    def give_up(which: Sequence[str], status: str, reason: str) -> None:
        for item, key in list(owed):
            if item in which:
                extra: dict[str, Any] = {}
                if job["kind"] == "speed":
                    extra = {"size": job["size"], "own": item in plan.OWN[job["operation"]]}
                take({**key, **extra, "status": status, "reason": reason})

    while items:
        if deadline.left() <= 0:
            give_up(items, "skipped", deadline.reason())
            return
        step, limit = "start", _START_S
        try:
            worker.send({**job, "all_items": job["items"], "items": items})
            while True:
                message = worker.hear(min(limit, deadline.left()))
                if "record" in message:
                    take(message["record"])
                elif "step" in message:
                    step, limit = message["step"], message["limit_s"]
                else:
                    break
        except WorkerDied as death:
            if deadline.left() <= 0:
                give_up(items, "skipped", f"stopped: {deadline.reason()}")
                return
            guilty = [step] if step in items else items
            give_up(guilty, "failed", f"{death} ({step})")
            items = [item for item in items if item not in guilty]
            done = {item for item, _ in owed}
            items = [item for item in items if item in done]
            continue
        if message["error"]:
            if job["kind"] == "metadata":
                on_record(job, {"error": message["error"]})
            give_up(items, "failed", message["error"])
        if not message["broken"]:
            give_up(items, "failed", "the worker gave no figure")
            return
        worker.stop()  # its device no longer answers: another process does the rest
        left = {item for item, _ in owed}
        items = [item for item in items if item in left]


def do_all(
    jobs: Sequence[Job],
    workers: int,
    environment: dict[str, str],
    deadline: Deadline,
    on_record: OnRecord,
) -> None:
    """Jobs by several workers side by side, in order; a worker ends when there is nothing left."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def work(worker: WorkerProcess) -> None:
        try:
            with contextlib.suppress(queue.Empty, Interrupted):
                while True:
                    do(waiting.get_nowait(), worker, deadline, on_record)
        finally:
            worker.stop()

    processes = [WorkerProcess(environment) for _ in range(min(workers, len(jobs)))]
    threads = [threading.Thread(target=work, args=(process,), daemon=True) for process in processes]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # so that an interrupt is heard
    finally:
        for process in processes:
            process.close()
        for thread in threads:
            thread.join(5)
