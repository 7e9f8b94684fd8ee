"""A server on the loopback that fails in the ways that servers of data sets fail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Exchange"], object]


class Exchange(BaseHTTPRequestHandler):
    """One request: gives it to the behaviour that its path has next."""

    site: FaultyServer

    def do_GET(self) -> None:
        self.close_connection = True
        with self.site.lock:
            self.site.requests.append((self.path, dict(self.headers.items())))
            behaviours = self.site.paths.get(self.path, [status(404)])
            behaviour = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
        behaviour(self)

    def answer(self, code: int, body: bytes = b"", **headers: str | int) -> None:
        """Sends a head, `Content-Length` as the body has it unless given, and the body."""
        self.send_response(code)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *what: Any) -> None:
        pass


@dataclass
class FaultyServer:
    """What each path does, request after request; the last behaviour stays.

    Attributes:
        paths: Path -> behaviours.
        requests: Path and headers of every request so far.
        closing: Set when the test is over; a stalled answer waits for it.
    """

    paths: dict[str, list[Behaviour]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> FaultyServer:
        handler = type("OwnExchange", (Exchange,), {"site": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *what: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def at(self, path: str, *behaviours: Behaviour) -> str:
        """Says what a path does; returns its address."""
        self.paths[path] = list(behaviours)
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def ranges(self) -> list[str | None]:
        """The Range of every request so far."""
        return [headers.get("Range") for _, headers in self.requests]


def whole(
    content: bytes,
    tag: str | None = '"1"',
    modified: str | None = None,
    ranges: bool = True,
    if_range: bool = True,
    **headers: str | int,
) -> Behaviour:
    """Sends a file as a good server does.

    Args:
        content: The file.
        tag: Its entity tag.
        modified: Its Last-Modified.
        ranges: Whether a Range is heeded.
        if_range: Whether an If-Range is heeded.
        headers: In addition.
    """

    def behave(exchange: Exchange) -> None:
        sent = dict(headers)
        if tag is not None:
            sent["ETag"] = tag
        if modified is not None:
            sent["Last_Modified"] = modified
        asked = exchange.headers.get("Range")
        condition = exchange.headers.get("If-Range")
        if if_range and condition not in (None, tag, modified):
            asked = None
        if asked is None or not ranges:
            exchange.answer(200, content, **sent)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            exchange.answer(416, Content_Range=f"bytes */{len(content)}")
            return
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        exchange.answer(206, content[start:], Content_Range=span, **sent)

    return behave


def breaking(content: bytes, after: int, stall: bool = False, **more: Any) -> Behaviour:
    """As `whole`, but sends only so many bytes, then closes the connection or falls silent."""
    inner = whole(content, **more)

    def behave(exchange: Exchange) -> None:
        write, left = exchange.wfile.write, after
        in_body = False

        def limited(data: bytes) -> int:
            nonlocal left, in_body
            if not in_body:  # the head
                in_body = True
                return write(data)
            written = write(data[:left])
            left -= len(data[:left])
            return written

        exchange.wfile.write = limited  # type: ignore[method-assign, assignment]
        inner(exchange)
        if stall:
            exchange.wfile.flush()
            exchange.site.closing.wait(10)

    return behave


def status(code: int, **headers: str | int) -> Behaviour:
    """Answers with an error page."""
    return lambda exchange: exchange.answer(code, b"<html>no</html>", **headers)


def redirect(address: str) -> Behaviour:
    """Points elsewhere."""
    return lambda exchange: exchange.answer(302, Location=address)


def web_page() -> Behaviour:
    """Says 200, and sends a page that explains why there is no file."""
    page = b"<!DOCTYPE html><html><body>This page is not available.</body></html>"
    return lambda exchange: exchange.answer(200, page, Content_Type="text/html; charset=utf-8")


def endless(start: bytes) -> Behaviour:
    """Sends without a Content-Length, four megabytes more than anyone wants."""

    def behave(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.end_headers()
        exchange.wfile.write(start + bytes(1 << 22))

    return behave
