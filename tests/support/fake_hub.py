"""A small Hugging Face Hub on the loopback interface: the requests of huggingface_hub, and files in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import pytest

COMMIT = "c0ffee" + "0" * 34


TOKEN = "hf_of_a_writer"


@dataclass
class Repository:
    """A repository with one commit."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)


class FakeHub:
    """A running server, to which `TOKEN` may write.

    Attributes:
        repositories: "owner/name" -> repository.
        requests: Method and path of every request so far.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []

    def __enter__(self) -> FakeHub:
        handler = type("OwnHandler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *details: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._respond(self._read)

    def do_HEAD(self) -> None:
        self._respond(self._read)

    def do_POST(self) -> None:
        self._respond(self._write)

    def log_message(self, *arguments: Any) -> None:
        pass

    def _respond(self, answer: Callable[[list[str], bytes], None]) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(f"{self.command} {'/'.join(parts)}")
        answer(parts, body)

    def _read(self, parts: list[str], body: bytes) -> None:
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        repository = self.hub.repositories.get(name)
        match parts:
            case _ if repository is None:
                self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            case ["api", "models", _, _, "tree", _]:
                files = repository.files.items()
                self._json([{"type": "file", "path": f, "size": len(c), "oid": _oid(c)} for f, c in files])
            case ["api", "models", _, _, "revision", revision] if revision != "main":
                self._json({"error": "Revision Not Found"}, 404, X_Error_Code="RevisionNotFound")
            case ["api", "models", *_]:
                self._json({"id": name, "sha": COMMIT, "private": repository.private, "siblings": []})
            case [_, _, "resolve", _, file]:
                content = repository.files[file]
                self._send(200, content, X_Repo_Commit=COMMIT, ETag=f'"{_oid(content)}"')

    def _write(self, parts: list[str], body: bytes) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
            return
        match parts:
            case ["api", "repos", "create"]:
                given = json.loads(body)
                name = f"{given['organization']}/{given['name']}"
                if name in self.hub.repositories:
                    self._json({"error": "It exists.", "url": f"{self.hub.url}/{name}"}, 409)
                    return
                # huggingface_hub 1.0 sends the first, later versions the second.
                private = given.get("private") or given.get("visibility") == "private"
                self.hub.repositories[name] = Repository(bool(private))
                self._json({"url": f"{self.hub.url}/{name}"})
            case ["api", "validate-yaml"]:
                self._json({"warnings": [], "errors": []})
            case ["api", "models", _, _, "preupload", _]:
                files = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
                self._json({"files": modes})
            case ["api", "models", owner, name, "commit", _]:
                lines = [json.loads(line) for line in body.splitlines()]
                values = [line["value"] for line in lines if line["key"] == "file"]
                self.hub.repositories[f"{owner}/{name}"].files |= {
                    value["path"]: base64.b64decode(value["content"]) for value in values
                }
                self._json(
                    {"commitUrl": f"https://huggingface.co/{owner}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
                )
            case _:
                self._json({"error": "unknown request"}, 404)

    def _json(self, content: object, code: int = 200, **headers: str) -> None:
        self._send(code, json.dumps(content).encode(), Content_Type="application/json", **headers)

    def _send(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def connect(monkeypatch: pytest.MonkeyPatch, hub: FakeHub, cache: Path, token: str | None = None) -> None:
    """Let cmsa_fast reach this hub with the real huggingface_hub, which reads its address only when imported."""
    client = SimpleNamespace(
        snapshot_download=partial(
            huggingface_hub.snapshot_download, endpoint=hub.url, cache_dir=cache, token=False
        ),
        HfApi=partial(huggingface_hub.HfApi, endpoint=hub.url, token=token or False),
        errors=huggingface_hub.errors,
        constants=SimpleNamespace(HF_HUB_CACHE=str(cache)),
    )
    for module in ("cmsa_fast.models.hub", "cmsa_fast.hub.push"):
        monkeypatch.setattr(f"{module}.import_hub", lambda what: client)
