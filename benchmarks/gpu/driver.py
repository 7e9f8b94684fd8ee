"""The parent's side of the worker processes: distribution of jobs, time limits, records of what was not done."""

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
_START_S = 120.0  # until a new worker's first message; it imports torch

# on_record(job, record)
OnRecord = Callable[[Job, dict[str, Any]], None]


class Deadline:
    """The time by which everything must be done."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()

    def reason(self) -> str:
        return f"the limit of {self.seconds / 60:.3g} minutes was reached"


class WorkerDied(Exception):
    """A worker ended, or was killed because it took too long."""


class Interrupted(Exception):
    """The whole run is ending: no worker may be started again."""


class WorkerProcess:
    """One worker process, started when it is first needed."""

    def __init__(self, environment: dict[str, str], command: Sequence[str] = COMMAND) -> None:
        self._environment = {**os.environ, **environment}
        if "TRITON_INTERPRET" not in environment:
            self._environment.pop("TRITON_INTERPRET", None)
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._log: IO[str] | None = None
        self._closed = False

    def send(self, job: Job) -> None:
        """Send a job, and start the process if it does not run."""
        if self._closed:
            raise Interrupted
        process = self._process
        if process is None or process.poll() is not None:
            self.stop()
            process = self._start()
        try:
            print(json.dumps(job), file=process.stdin, flush=True)
        except OSError as error:
            raise WorkerDied(f"the worker ended: {self._last_line()}") from error

    def receive(self, limit_s: float) -> dict[str, Any]:
        """The next message.

        Raises:
            WorkerDied: The worker ended, or sent nothing for `limit_s` seconds and was killed.
            Interrupted: `close` was called.
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
            reason = f"the worker ended with status {code}: {self._last_line()}"
            self.stop()
            raise WorkerDied(reason)
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Kill the process for good; may be called from another thread."""
        self._closed = True
        with contextlib.suppress(ProcessLookupError):
            if self._process is not None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Kill the process, if there is one; `send` starts another."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # with its child processes
            self._process.wait()
            with contextlib.suppress(OSError):  # unread data
                self._process.__exit__(None, None, None)
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def _start(self) -> "subprocess.Popen[str]":
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by `stop`)
        self._lines = queue.Queue()
        self._process = process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            process_group=0,
        )
        threading.Thread(target=self._read, args=(process, self._lines), daemon=True).start()
        return process

    @staticmethod
    def _read(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in process.stdout or ():
                lines.put(line)
        lines.put(None)

    def _last_line(self) -> str:
        if self._log is None:
            return "no output"
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return lines[-1][:400] if lines else "no output"


def do(job: Job, worker: WorkerProcess, deadline: Deadline, on_record: OnRecord) -> list[Job]:
    """Run a job to its end.

    `on_record` gets every record that the job owes, measured or with the reason why not.

    Returns:
        The jobs to repeat alone, one for each item that was out of memory. A job that is repeated records it.
    """
    owed = plan.keys(job)
    items: list[str] = list(job["items"])
    again: dict[str, Job] = {}

    def take(record: dict[str, Any]) -> None:
        for item, key in owed:
            if all(record.get(name, value) == value for name, value in key.items()):
                owed.remove((item, key))
                record = {**key, **record}
                if record["status"] == "out of memory" and not job.get("alone"):
                    repeated = again.setdefault(item, {**job, "items": [item], "alone": True, "passes": []})
                    repeated["passes"] += [key["pass"]] if "pass" in key else []
                    return
                break
        on_record(job, record)

    def give_up(which: Sequence[str], status: str, reason: str) -> None:
        for item, key in list(owed):
            if item in which:
                extra: dict[str, Any] = {}
                if job["kind"] == "speed":
                    extra = {"size": job["size"], "own": item in plan.OWN}
                take({**key, **extra, "status": status, "reason": reason})

    def remaining() -> list[str]:
        return [item for item in items if any(item == other for other, _ in owed)]

    while items:
        if deadline.left() <= 0:
            give_up(items, "skipped", deadline.reason())
            break
        step, limit = "start", _START_S
        try:
            worker.send({**job, "items": items})
            while True:
                message = worker.receive(min(limit, deadline.left()))
                if "record" in message:
                    take(message["record"])
                elif "step" in message:
                    step, limit = message["step"], message["limit_s"]
                else:
                    break
        except WorkerDied as death:
            if deadline.left() <= 0:
                give_up(items, "skipped", f"stopped: {deadline.reason()}")
                break
            lost = [step] if step in items else items
            give_up(lost, "failed", f"{death} ({step})")
            items = remaining()
            continue
        if message["error"]:
            if job["kind"] == "metadata":
                on_record(job, {"error": message["error"]["reason"]})
            give_up(items, **message["error"])
        if not message["broken"]:
            give_up(items, "failed", "the worker sent no figure")
            break
        worker.stop()  # the device no longer responds: another process does the rest
        items = remaining()
    return list(again.values())


def do_all(
    jobs: Sequence[Job],
    workers: int,
    environment: dict[str, str],
    deadline: Deadline,
    on_record: OnRecord,
    command: Sequence[str] = COMMAND,
) -> list[Job]:
    """Run jobs in order by several parallel workers; a worker ends when no job is left.

    Returns:
        The jobs to repeat alone, of items that were out of memory.
    """
    again: list[Job] = []
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def work(worker: WorkerProcess) -> None:
        try:
            with contextlib.suppress(queue.Empty, Interrupted):
                while True:
                    again.extend(do(waiting.get_nowait(), worker, deadline, on_record))
        finally:
            worker.stop()

    processes = [WorkerProcess(environment, command) for _ in range(min(workers, len(jobs)))]
    threads = [threading.Thread(target=work, args=(process,), daemon=True) for process in processes]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # with a timeout, so that KeyboardInterrupt is raised
    finally:
        for process in processes:
            process.close()
        for thread in threads:
            thread.join(5)
    return again
