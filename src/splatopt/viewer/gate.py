"""Who is let in: this machine alone, or whoever has the link with its token.

viser checks neither. Its websocket server is started behind :class:`Gate`, which looks at every request before viser
does: of pages, of files and of the websocket alike, as all begin as an HTTP request.

Without a token the port is bound to loopback. A page of another site that is open in a browser here could still speak
to it, by its own address or by a name that its owner points to 127.0.0.1 (DNS rebinding): what is asked for under a
name that is not loopback's is refused. With a token a request must have it in its link, which leaves a cookie and an
address without it, or in that cookie. Browsers send a cookie to all ports of a host, so a page at another port has it
too: with or without a token, what a page from another host or port asks for is refused.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from splatopt.core.checks import InputError

_TOKEN_BYTES = 24
_MAX_PORT = 65_535
_LOCALHOST = ("127.0.0.1", "::1")
"""Addresses that every browser finds under the name localhost."""

_EVERYWHERE = ("0.0.0.0", "::")

_REFUSED = b"Refused: open the link that splatopt printed, with its token.\n"
_REFUSED_HERE = b"Refused: this page is for the machine that it is served on; open the link that splatopt printed.\n"

_quiet = logging.getLogger(__name__)
_quiet.setLevel(logging.CRITICAL)
"""What strangers send is no news: the server's own logger writes a trace for each broken request."""


class Verdict(Enum):
    """What becomes of a request."""

    SERVE = "serve"
    WELCOME = "welcome"
    """It has the token: it gets the cookie, and is sent on to the address without the token."""
    REFUSE = "refuse"


@dataclass(frozen=True)
class Gate:
    """Decides on requests.

    Attributes:
        token: What a request must have; None where the port is open to this machine alone.
        cookie: Name of the cookie that holds the token.
    """

    token: str | None
    cookie: str = "splatopt"

    def verdict(self, path: str, headers: Mapping[str, str]) -> Verdict:
        """Return what becomes of a request.

        Args:
            path: With its query.
            headers: By their names; those that are looked at are Host, Origin and Cookie.
        """
        if not _is_own_page(headers):
            return Verdict.REFUSE
        if self.token is None:
            return Verdict.SERVE if _names_loopback(headers) else Verdict.REFUSE
        if any(self._is_token(value) for value in _values(path, "token")):
            return Verdict.WELCOME
        return Verdict.SERVE if self._is_token(_cookie(headers.get("Cookie", ""), self.cookie)) else Verdict.REFUSE

    def _is_token(self, given: str) -> bool:
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())


def _values(path: str, name: str) -> list[str]:
    """What a query gives under a name; a broken query gives nothing."""
    try:
        return parse_qs(urlsplit(path).query, max_num_fields=16).get(name, [])
    except ValueError:
        return []


def _cookie(text: str, name: str) -> str:
    try:
        found = SimpleCookie(text).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _is_own_page(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from no page, or from one of the host and port that it asks."""
    origin = headers.get("Origin")
    try:
        return origin is None or urlsplit(origin).netloc == headers.get("Host", "")
    except ValueError:
        return False


def _names_loopback(headers: Mapping[str, str]) -> bool:
    """Whether a request names as its host localhost, or an address that is loopback's."""
    try:
        named = urlsplit(f"//{headers.get('Host', '')}").hostname or ""
    except ValueError:
        return False
    return named == "localhost" or _is_loopback(named)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Door:
    """A port that is ours.

    Attributes:
        listener: The socket.
        gate: Who is let in.
        link: What a person opens.
    """

    listener: socket.socket
    gate: Gate
    link: str


def open_door(host: str, port: int) -> Door:
    """Take a port, and say who is let in there.

    Args:
        host: Address or name; one that is loopback's needs no token.
        port: 0 for any that is free.

    Raises:
        InputError: The port is taken or may not be, or this machine has no such address.
    """
    if not 0 <= port <= _MAX_PORT:
        raise InputError(f"--view-port must be between 0 and {_MAX_PORT}, got {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"--host {host!r} is no address of this machine; give one, or leave it out") from error
    try:
        listener = socket.create_server((str(address[0]), port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"port {port} of {host} cannot be had for the page ({reason}); give another with --view-port, or "
            "--view-port 0 for any that is free"
        ) from error
    bound = listener.getsockname()[1]
    numbers = str(address[0]).partition("%")[0]
    if _is_loopback(numbers):
        named = "localhost" if numbers in _LOCALHOST else _in_link(numbers)
        return Door(listener, Gate(None), f"http://{named}:{bound}/")
    gate = Gate(secrets.token_urlsafe(_TOKEN_BYTES), f"splatopt-{bound}")
    named = socket.gethostname() if host in _EVERYWHERE else _in_link(host)
    return Door(listener, gate, f"http://{named}:{bound}/?token={gate.token}")


def _in_link(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextmanager
def served_through(door: Door) -> Iterator[None]:
    """Have the websocket server that is started in the block listen at a door, and look at no request but through it.

    viser has no place for this: it starts ``websockets.asyncio.server.serve`` by host and port, and takes the next
    port where one is taken. In the block that name is ours.

    Raises:
        RuntimeError: No server was started in the block, so that one may run without the gate.
    """
    import websockets.asyncio.server as servers

    original, started = servers.serve, []

    def serve(handler: Callable[..., Any], *_: object, **settings: Any) -> Any:
        started.append(True)
        inner = settings.pop("process_request")

        def look(connection: Any, request: Any) -> Any:
            verdict = door.gate.verdict(request.path, request.headers)
            return inner(connection, request) if verdict is Verdict.SERVE else _answer(door.gate, verdict)

        return original(handler, sock=door.listener, process_request=look, logger=_quiet, **settings)

    servers.serve = serve  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        servers.serve = original  # type: ignore[misc]
    if not started:
        raise RuntimeError("viser was started past the gate of its port; its version is not one that is known here")


def _answer(gate: Gate, verdict: Verdict) -> Any:
    """Return the response of a request that viser does not get to see."""
    from websockets.datastructures import Headers
    from websockets.http11 import Response

    if verdict is Verdict.WELCOME:
        cookie = f"{gate.cookie}={gate.token}; Path=/; HttpOnly; SameSite=Lax"
        headers = Headers({"Location": "/", "Set-Cookie": cookie, "Content-Length": "0", "Cache-Control": "no-store"})
        return Response(HTTPStatus.SEE_OTHER, "See Other", headers, b"")
    text = _REFUSED_HERE if gate.token is None else _REFUSED
    headers = Headers({"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(text))})
    return Response(HTTPStatus.FORBIDDEN, "Forbidden", headers, text)
