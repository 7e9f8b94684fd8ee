"""Starts `cmsa-fast serve` in a process, and talks to its page by HTTP as Gradio's frontend does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from conftest import REPOSITORY
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

_SECONDS = 120


@dataclass
class Answered:
    """What a call of "segment" shows."""

    message: str
    marked: Tensor | None
    legend: str
    heat_maps: list[Tensor]


class Server:
    """A running page.

    Attributes:
        address: Where it listens, with a final slash.
        process: Its process.
        log: What it has printed.
    """

    def __init__(self, process: subprocess.Popen[bytes], address: str, log: Path) -> None:
        self.process = process
        self.address = address
        self.log = log

    def get(self, path: str) -> bytes:
        """The content of a path below the address."""
        with urlopen(self.address + path, timeout=_SECONDS) as response:
            return bytes(response.read())

    def upload(self, name: str, content: bytes) -> str:
        """Uploads a file; returns its path on the server."""
        boundary = uuid.uuid4().hex
        body = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode() + content
        body += f"\r\n--{boundary}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        with urlopen(Request(f"{self.address}gradio_api/upload", body, kind), timeout=_SECONDS) as response:
            (path,) = json.load(response)
        return str(path)

    def call(self, name: str, *inputs: Any) -> tuple[str, Any]:
        """Calls a function of the page; returns the event's name, "complete" or "error", and its data."""
        url = f"{self.address}gradio_api/call/{name}"
        request = Request(url, json.dumps({"data": inputs}).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=_SECONDS) as response:
            event = json.load(response)["event_id"]
        with urlopen(f"{url}/{event}", timeout=_SECONDS) as response:
            lines = response.read().decode().strip().splitlines()
        return lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))

    def segment(self, path: str | None, expressions: str) -> Answered:
        """Calls "segment" for an uploaded file."""
        event, data = self.call("segment", path and file_data(path), expressions)
        assert event == "complete", data
        message, marked, legend, heat_maps = data
        pixels = None if marked is None else self.image(marked["path"])
        return Answered(message, pixels, legend, [self.image(item["image"]["path"]) for item in heat_maps])

    def image(self, path: str) -> Tensor:
        """An image that the page shows."""
        return pil_to_tensor(Image.open(BytesIO(self.get(f"gradio_api/file={quote(path)}"))).convert("RGB"))


def file_data(path: str) -> dict[str, Any]:
    """How Gradio names a file in a request."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@contextmanager
def served(run: Path | str, *options: str, log: Path) -> Iterator[Server]:
    """The page of a model, until the block ends; `log` receives what the command prints."""
    if find_spec("gradio") is None:
        pytest.skip("Gradio is not installed")
    command = [sys.executable, "-m", "cmsa_fast", "serve", str(run), "--port", "0", *options]
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, cwd=REPOSITORY, stderr=output, stdout=output, preexec_fn=_heed_interrupts
        ) as process,
    ):
        try:
            yield Server(process, _address(process, log), log)
        finally:
            process.terminate()  # nothing happens if it has ended
            try:
                assert process.wait(_SECONDS) == 130
            finally:
                process.kill()  # or leaving the block would wait for it


def _heed_interrupts() -> None:
    """A shell's background jobs, perhaps pytest itself, ignore SIGINT, and so do the processes they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(10 * _SECONDS):
        for line in log.read_text().splitlines():
            if line.startswith("The page is at "):
                return line.split()[4].rstrip(";")
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise TimeoutError(log.read_text())
