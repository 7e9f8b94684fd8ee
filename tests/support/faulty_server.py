"""An HTTP server on the loopback interface that can fail like the servers of data sets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Exchange"], object]


class Exchange(BaseHTTPRequestHandler):
    """One request, answered by the behaviour of its path."""

    server_state: FaultyServer

    def do_GET(self) -> None:
        self.close_connection = True
        self.server_state.requests.append(self.path)
        self.server_state.paths.get(self.path, status(404))(self)

    def answer(self, code: int, body: bytes = b"", **headers: str | int) -> None:
        """Sends a status, headers with the length of the body unless one is given, and the body."""
        self.send_response(code)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@dataclass
class FaultyServer:
    """A running server.

    Attributes:
        paths: Behaviour of each path; other paths answer 404.
        requests: Path of every request so far.
        closing: Set at the end; stalled answers wait for it.
    """

    paths: dict[str, Behaviour] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> FaultyServer:
        handler = type("OwnExchange", (Exchange,), {"server_state": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, path: str, behaviour: Behaviour) -> str:
        """Sets the behaviour of a path; returns its URL."""
        self.paths[path] = behaviour
        return f"http://127.0.0.1:{self._server.server_port}{path}"


def whole(content: bytes, **headers: str | int) -> Behaviour:
    """Sends a file."""
    return lambda exchange: exchange.answer(200, content, **headers)


def status(code: int, **headers: str | int) -> Behaviour:
    """Answers with an error page or a redirect."""
    return lambda exchange: exchange.answer(code, b"<html>no</html>", **headers)


def broken(content: bytes, sent: int, *, stall: bool = False) -> Behaviour:
    """Sends the first `sent` bytes of a file, then closes the connection or sends nothing more."""

    def behave(exchange: Exchange) -> None:
        exchange.answer(200, content[:sent], Content_Length=len(content))
        if stall:
            exchange.wfile.flush()
            exchange.server_state.closing.wait(10)

    return behave
