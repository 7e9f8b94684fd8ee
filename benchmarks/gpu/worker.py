"""A process that runs jobs: each a line of JSON on its input, answered by lines of JSON on its output.

Messages: {"step": item, "limit_s": ...} before each step that may take long or crash, {"record": ...} for each
figure, and {"done": true} at the end of a job, with "error" and, if the device no longer responds, "broken".
"""

import json
import os
import sys
from typing import Any


class Worker:
    """Runs jobs and reports their progress."""

    def __init__(self, output: int) -> None:
        self._output = open(output, "w", buffering=1, encoding="utf-8")  # noqa: SIM115 (open until exit)
        self.broken: str | None = None

    def send(self, **message: Any) -> None:
        self._output.write(json.dumps(message, allow_nan=False) + "\n")

    def step(self, item: str, limit_s: float) -> None:
        self.send(step=item, limit_s=limit_s)

    def alive(self, device: str) -> bool:
        """Whether the device still responds: after an illegal address, for example, it never does again."""
        if device == "cpu" or self.broken:
            return not self.broken
        import torch

        try:
            torch.cuda.synchronize()
            torch.zeros(1, device=device).item()
        except Exception as error:  # whatever the error, this process cannot go on
            self.broken = f"{type(error).__name__}: {error}".splitlines()[0][:400]
        return self.broken is None

    def free(self, device: str) -> None:
        """Return cached memory, for other processes."""
        if device != "cpu":
            import gc

            import torch

            gc.collect()
            torch.cuda.empty_cache()

    def do(self, job: dict[str, Any], items: list[str]) -> None:
        from . import ceilings, correctness, metadata, speed
        from .timing import outcome

        device = job["device"]
        self.step("start", 120)
        if device != "cpu":
            import torch

            torch.cuda.set_device(device if ":" in device else f"{device}:0")
        if job["kind"] == "metadata":
            self.send(record=metadata.device(device))
        elif job["kind"] == "speed":
            speed.measure(
                job,
                items,
                self.step,
                lambda record: self.send(record=record),
                lambda: self.alive(device),
            )
        elif job["kind"] == "warm":
            speed.warm_up(job, items, self.step)
        else:
            for item in items:
                self.step(item, 120)
                try:
                    if job["kind"] == "ceilings":
                        figures = ceilings.measure(item, device, job["quick"])
                        record = {"name": item, "status": "measured", "reason": None, **figures}
                    elif job["kind"] == "kernels":
                        record = {"form": item, **speed.count_launches(job, item)}
                    else:
                        record = {"case": item, **correctness.measure(job, job["cases"][item])}
                except Exception as error:  # recorded; the other items go on
                    key = {"ceilings": "name", "kernels": "form"}.get(job["kind"], "case")
                    record = {key: item, **outcome(error)}
                self.send(record=record)
                if record["status"] in ("failed", "out of memory"):
                    if not self.alive(device):
                        return
                    self.free(device)


def main() -> None:
    # Only messages go to the parent; output of libraries goes to the log.
    output = os.dup(1)
    os.dup2(2, 1)
    worker = Worker(output)
    for line in sys.stdin:
        job = json.loads(line)
        error: dict[str, str] | None = None
        try:
            worker.do(job, job["items"])
        except Exception as problem:  # in the job's inputs or the clock: nothing can be measured
            from .timing import outcome

            error = outcome(problem)
        if worker.alive(job["device"]):
            worker.free(job["device"])
        worker.send(done=True, error=error, broken=worker.broken)
        if worker.broken:
            return


if __name__ == "__main__":
    main()
