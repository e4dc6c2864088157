"""Who is let in, at a port that is ours; asked over real sockets."""

from __future__ import annotations

import http.client
import socket
import sys

import pytest

from splatopt.core.checks import InputError
from splatopt.viewer.gate import Gate, Verdict, open_door

pytest.importorskip("viser", reason="the page needs viser")

HERE = {"Host": "localhost:8080"}


@pytest.mark.parametrize(
    ("headers", "verdict"),
    [
        (HERE, Verdict.SERVE),
        ({"Host": "127.0.0.1:9000"}, Verdict.SERVE),
        ({"Host": "[::1]:9000"}, Verdict.SERVE),
        ({"Host": "127.0.1.1:8080", "Origin": "http://127.0.1.1:8080"}, Verdict.SERVE),
        ({"Host": "127.0.1.1.evil.example:8080"}, Verdict.REFUSE),
        ({"Host": "192.168.0.1:8080"}, Verdict.REFUSE),
        ({"Host": "[::2]:8080"}, Verdict.REFUSE),
        ({"Host": "[evil]:8080"}, Verdict.REFUSE),
        (HERE | {"Origin": "http://localhost:9000"}, Verdict.REFUSE),
        (HERE | {"Origin": "http://localhost:8080"}, Verdict.SERVE),
        (HERE | {"Origin": "http://evil.example"}, Verdict.REFUSE),
        (HERE | {"Origin": "null"}, Verdict.REFUSE),
        ({"Host": "evil.example:8080"}, Verdict.REFUSE),
        ({}, Verdict.REFUSE),
    ],
)
def test_without_a_token_only_pages_of_this_machine_are_served(headers, verdict):
    assert Gate(None).verdict("/", headers) is verdict


@pytest.mark.parametrize(
    ("path", "cookie", "verdict"),
    [
        ("/", "", Verdict.REFUSE),
        ("/?token=", "", Verdict.REFUSE),
        ("/?token=wrong", "", Verdict.REFUSE),
        ("/?token=ri%67ht", "", Verdict.WELCOME),
        ("/?a=b&token=right", "", Verdict.WELCOME),
        ("/", "splatopt=right", Verdict.SERVE),
        ("/", "other=1; splatopt=right", Verdict.SERVE),
        ("/", "splatopt=wrong", Verdict.REFUSE),
        ("/", "other=right", Verdict.REFUSE),
        ("/?token=" + "&token=".join("x" * 40), "", Verdict.REFUSE),
    ],
)
def test_with_a_token_every_request_must_have_it(path, cookie, verdict):
    assert Gate("right").verdict(path, {"Cookie": cookie} if cookie else {}) is verdict


@pytest.mark.parametrize(
    ("origin", "verdict"),
    [
        ("http://shared:8080", Verdict.SERVE),
        ("http://shared:9000", Verdict.REFUSE),
        ("http://shared", Verdict.REFUSE),
        ("http://evil.example:8080", Verdict.REFUSE),
        ("http://[broken", Verdict.REFUSE),
        ("null", Verdict.REFUSE),
    ],
)
def test_with_a_token_too_pages_of_other_hosts_and_ports_are_refused(origin, verdict):
    headers = {"Host": "shared:8080", "Origin": origin, "Cookie": "splatopt=right"}
    assert Gate("right").verdict("/", headers) is verdict
    headers.pop("Cookie")
    welcome = Verdict.WELCOME if verdict is Verdict.SERVE else Verdict.REFUSE
    assert Gate("right").verdict("/?token=right", headers) is welcome


def ask(port: int, path: str = "/", *, at: str = "127.0.0.1", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(at, port, timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def upgrade(port: int, **headers: str) -> int:
    wanted = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    return ask(port, **wanted, **{"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}, **headers)[0]


def test_a_server_for_others_refuses_pages_files_and_websockets_without_the_token():
    from splatopt.viewer.server import start_server

    door = open_door("0.0.0.0", 0)
    port, token = door.listener.getsockname()[1], door.gate.token
    assert door.link.endswith(f":{port}/?token={token}")
    server = start_server(door)
    try:
        status, _, body = ask(port)
        assert (status, body) == (403, b"Refused: open the link that splatopt printed, with its token.\n")
        assert ask(port, "/index.html")[0] == 403
        assert ask(port, "/?token=guess")[0] == 403
        assert upgrade(port) == 403
        status, headers, _ = ask(port, f"/?token={token}")
        assert (status, headers["Location"]) == (303, "/")
        assert "HttpOnly" in headers["Set-Cookie"]
        cookie = headers["Set-Cookie"].partition(";")[0]
        status, _, body = ask(port, Cookie=cookie)
        assert status == 200
        assert b"<html" in body
        assert ask(port, "/..%2f..%2fpyproject.toml", Cookie=cookie)[0] == 404
        assert upgrade(port, Cookie=cookie) == 101
        assert upgrade(port, Cookie=cookie, Origin=f"http://127.0.0.1:{port}") == 101
        assert upgrade(port, Cookie=cookie, Origin=f"http://127.0.0.1:{port + 1}") == 403
    finally:
        server.stop()


def test_a_server_for_this_machine_refuses_pages_of_others():
    from splatopt.viewer.server import start_server

    door = open_door("localhost", 0)
    port = door.listener.getsockname()[1]
    assert door.link == f"http://localhost:{port}/"
    server = start_server(door)
    try:
        assert ask(port)[0] == 200
        assert upgrade(port, Origin="http://evil.example") == 403
        assert upgrade(port, Origin=f"http://127.0.0.1:{port}") == 101
        assert server.request_share_url() is None
    finally:
        server.stop()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere 127.0.0.1 alone is loopback's")
@pytest.mark.parametrize(("host", "address"), [("127.0.0.2", "127.0.0.2"), ("this-machine", "127.0.1.1")])
def test_another_loopback_address_stands_in_its_link_and_is_served(host, address, monkeypatch):
    from splatopt.viewer.server import start_server

    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]
    with monkeypatch.context() as context:
        context.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        door = open_door(host, 0)
    port = door.listener.getsockname()[1]
    assert door.link == f"http://{address}:{port}/"
    server = start_server(door)
    try:
        assert ask(port, at=address)[0] == 200
        assert upgrade(port, at=address, Origin=f"http://{address}:{port}") == 101
        status, _, body = ask(port, at=address, Host=f"this-machine:{port}")
        assert status == 403
        assert b"open the link that splatopt printed" in body
        assert b"token" not in body
    finally:
        server.stop()


def test_a_taken_port_is_one_sentence():
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of localhost cannot be had .*--view-port 0 for any"):
            open_door("localhost", port)


@pytest.mark.parametrize(("host", "port", "match"), [("localhost", 70000, "65535"), ("no host", 0, "no address")])
def test_impossible_places_are_refused(host, port, match):
    with pytest.raises(InputError, match=match):
        open_door(host, port)
