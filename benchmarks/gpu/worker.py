"""A process that does jobs: one line of JSON each on its input, lines of JSON on its output.

What it says: {"step": item, "limit_s": ...} before each thing that may take long or kill it, {"record": ...} for
each figure, and {"done": true} at the end of a job, with "broken" where the device no longer answers.
"""

import json
import os
import sys
from typing import Any


class Worker:
    """Does jobs and says how they go."""

    def __init__(self, output: int) -> None:
        self._output = open(output, "w", buffering=1, encoding="utf-8")  # noqa: SIM115 (to the end)
        self.broken: str | None = None

    def say(self, **message: Any) -> None:
        self._output.write(json.dumps(message, allow_nan=False) + "\n")

    def step(self, item: str, limit_s: float) -> None:
        self.say(step=item, limit_s=limit_s)

    def alive(self, device: str) -> bool:
        """Whether the device still answers: after an illegal address, say, it never does again."""
        if device == "cpu" or self.broken:
            return not self.broken
        import torch

        try:
            torch.cuda.synchronize()
            torch.zeros(1, device=device).item()
        except Exception as error:  # whatever it says, this process is done
            self.broken = f"{type(error).__name__}: {error}".splitlines()[0][:400]
        return self.broken is None

    def do(self, job: dict[str, Any], items: list[str]) -> None:
        from . import ceilings, correctness, metadata, speed
        from .timing import describe

        device = job["device"]
        self.step("start", 120)
        if device != "cpu":
            import torch

            torch.cuda.set_device(device if ":" in device else f"{device}:0")
        if job["kind"] == "metadata":
            self.say(record=metadata.device(device))
        elif job["kind"] == "speed":
            speed.measure(
                job,
                items,
                self.step,
                lambda record: self.say(record=record),
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
                        record = {"form": item, **speed.kernel_names(job, item)}
                    else:
                        case = job["cases"][job["all_items"].index(item)]
                        record = {"case": item, **correctness.measure(job, case)}
                except Exception as error:  # a failure is reported and the rest goes on
                    key = {"ceilings": "name", "kernels": "form"}.get(job["kind"], "case")
                    record = {key: item, "status": "failed", "reason": describe(error)}
                self.say(record=record)
                if record["status"] == "failed" and not self.alive(device):
                    return


def main() -> None:
    # Only messages go to the parent: what libraries print goes to the log.
    output = os.dup(1)
    os.dup2(2, 1)
    worker = Worker(output)
    for line in sys.stdin:
        job = json.loads(line)
        error: str | None = None
        try:
            worker.do(job, job["items"])
        except Exception as problem:  # the job's inputs or the clock: nothing of it can be measured
            from .timing import describe

            error = describe(problem)
        if job["device"] != "cpu" and worker.alive(job["device"]):
            import gc

            import torch

            gc.collect()
            torch.cuda.empty_cache()
        worker.say(done=True, error=error, broken=worker.broken)
        if worker.broken:
            return


if __name__ == "__main__":
    main()
