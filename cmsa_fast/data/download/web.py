"""What HTTP asks of a client that fetches large files: which addresses, which failures mean what."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit

from ... import __version__


class RefusedError(Exception):
    """This mirror will not do."""


class BrokenError(Exception):
    """Another attempt may go better.

    Args:
        reason: What happened.
        after: Seconds that the server asks to wait.
    """

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def check_address(address: str) -> None:
    """Refuses an address that is not plain HTTP or HTTPS.

    Raises:
        ValueError: It has another scheme, no host, no valid port, a user name or password, or a
            character that belongs in no address.
    """
    if not address.isascii() or not address.isprintable() or " " in address:
        raise ValueError("an address must be of ASCII letters, digits and signs, without spaces")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"the address {public_address(address)!r} must begin with http:// or https:// and a host"
        )
    if "@" in parts.netloc:
        raise ValueError(
            f"the address at {parts.hostname} must not hold a user name or password: they would end "
            "up in logs"
        )
    try:
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"the address at {parts.hostname} has no valid port: {error}") from error


def public_address(address: str) -> str:
    """An address without what may be secret: query, fragment, user name and password."""
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def open_address(address: str, headers: dict[str, str], timeout: float) -> Any:
    """Sends a GET request; redirects are followed, proxies are those of the environment.

    Args:
        address: As `check_address` lets through.
        headers: Beside those that every request has.
        timeout: Seconds for the connection, and for each silence later on.

    Returns:
        The `http.client.HTTPResponse`, to be closed by the caller.

    Raises:
        urllib.error.HTTPError: The status is none of 2xx.
        RefusedError: It redirects to another kind of address, or another attempt is of no use.
        BrokenError: The connection failed, and another attempt may go better.
    """
    own = {"User-Agent": f"cmsa_fast/{__version__}", "Accept-Encoding": "identity"}
    try:
        return _opener().open(request.Request(address, headers=own | headers), timeout=timeout)
    except HTTPError:
        raise
    except (OSError, HTTPException) as error:
        raise network_error(error) from error


def network_error(error: Exception) -> RefusedError | BrokenError:
    """What a connection that failed with an OSError or an HTTPException means."""
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN:
        return RefusedError("there is no such host, or no network")
    if isinstance(reason, ssl.SSLCertVerificationError):
        return RefusedError(f"its certificate is not valid ({reason.verify_message})")
    if isinstance(reason, TimeoutError):
        return BrokenError("sends nothing (time-out)")
    text = " ".join(str(reason).split()) or type(reason).__name__
    return BrokenError(f"the connection failed ({text})")


def content_range(text: str | None) -> tuple[int | None, int | None]:
    """First byte and total of `bytes 5-9/10`."""
    unit, _, rest = (text or "").strip().partition(" ")
    span, _, total = rest.partition("/")
    return (whole_number(span.partition("-")[0]) if unit == "bytes" else None), whole_number(total)


def whole_number(text: str | None) -> int | None:
    """A header's number; None where there is none, or none that any file has."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


class SafeRedirects(request.HTTPRedirectHandler):
    """Follows redirects, but not to another kind of address nor from HTTPS to HTTP."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or (old == "https" and new == "http"):
            fp.close()
            raise RefusedError(f"redirects from {old} to {new}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> request.OpenerDirector:
    """Knows HTTP and HTTPS and the environment's proxies; neither files nor FTP."""
    handlers: Sequence[request.BaseHandler] = (
        request.ProxyHandler(),
        request.UnknownHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        SafeRedirects(),
        request.HTTPErrorProcessor(),
    )
    opener = request.OpenerDirector()
    opener.addheaders = []
    for handler in handlers:
        opener.add_handler(handler)
    return opener
