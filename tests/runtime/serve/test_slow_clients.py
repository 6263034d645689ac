"""Clients that send slowly, never, too much, or go away: the others are served, and what they hold is bounded."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import ExitStack, suppress

import pytest

from _helpers.fuzz import png
from krl_runtime.serve import connections

HEAD = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def connect():
    with ExitStack() as stack:

        def open_one(server, data: bytes = b"") -> socket.socket:
            connection = stack.enter_context(socket.create_connection((server.host, server.port), timeout=20))
            connection.sendall(data)
            return connection

        yield open_one


def rest(connection: socket.socket) -> bytes:
    """Return everything up to the end of the connection."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


def error_of(response: bytes) -> str:
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    return json.loads(body)["error"]


STARTS = {
    "nothing": b"",
    "part of a head": b"GET /v2/health/live HTTP/1.1\r\nHost:",
    "a body that does not come": HEAD % 10,
    "part of a body": HEAD % 10 + b"abc",
    "part of a chunk": b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
}


@pytest.mark.parametrize("begun", STARTS.values(), ids=STARTS)
def test_others_are_served(start, connect, begun):
    """More connections than slots, and than connections at all: none takes the place of a complete request."""
    server = start(workers=1, queue=2, connections=20)
    for _ in range(60):
        connect(server, begun)
    assert server.ask("GET", "/v2/health/live").status == 200
    assert server.ask("POST", "/classify", png(20, 20)).status == 200
    until(lambda: len(server.server.server_state.connections) <= 20)


def test_the_oldest_connection_makes_room(start, connect):
    server = start(connections=3)
    first, second, third = (connect(server, b"GET /v2 HTTP/1.1\r\n") for _ in range(3))
    until(lambda: len(server.server.server_state.connections) == 3)
    fourth = connect(server, b"GET /v2 HTTP/1.1\r\n")
    assert rest(first) == b""
    for connection in (second, third, fourth):
        connection.sendall(b"Host: x\r\nConnection: close\r\n\r\n")
        assert rest(connection).startswith(b"HTTP/1.1 200")


def test_requests_at_work_keep_their_connections(start, connect, slow):
    server = start(workers=1, queue=5, connections=2)
    go, calls = slow(server)
    body = png(20, 20)
    at_work = [connect(server, HEAD % len(body) + body) for _ in range(2)]
    until(lambda: calls and server.server.server_state.connections and server.model)
    until(lambda: all(not other.waits() for other in server.server.server_state.connections))
    response = rest(connect(server))
    assert response.startswith(b"HTTP/1.1 503")
    assert "all connections are at work" in error_of(response)
    go.set()
    for connection in at_work:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_head_that_does_not_arrive(start, connect):
    server = start(read_seconds=0.3)
    silent, begun = connect(server), connect(server, b"GET /v2 HTTP/1.1\r\nHost:")
    assert rest(silent) == b""
    response = rest(begun)
    assert response.startswith(b"HTTP/1.1 408")
    assert error_of(response) == "the head of the request did not arrive within 0.3 seconds"


def test_a_second_head_that_does_not_arrive(start, connect):
    server = start(read_seconds=0.3)
    connection = connect(server, b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"HTTP/1.1 200" in connection.recv(4096)
    connection.sendall(b"GET /v2")
    assert b"HTTP/1.1 408" in rest(connection)


def test_slow_heads_that_arrive_in_time(start, connect):
    server = start(read_seconds=20)
    connection = connect(server)
    for letter in b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":
        connection.sendall(bytes([letter]))
    assert rest(connection).startswith(b"HTTP/1.1 200")


def test_bodies_that_arrive_share_a_bound(start, connect):
    """Two slots of 1,000 bytes: three connections hold at most 2,000 bytes together."""
    server = start(workers=1, queue=1, max_body_bytes=1000)
    held = [connect(server, HEAD % 1000 + bytes(950)) for _ in range(2)]
    until(lambda: server.metric("krl_requests_in_progress") == 2)
    answer = server.ask("POST", "/classify", bytes(999))
    assert answer.status == 503
    assert "the bodies of other requests take all memory" in answer.json()["error"]
    for connection in held:
        connection.close()
    until(lambda: server.metric("krl_requests_in_progress") == 0)
    assert server.ask("POST", "/classify", bytes(999)).status == 400


@pytest.mark.parametrize("head", [
    b"POST /nothing HTTP/1.1\r\nHost: x\r\n",
    b"POST /v2 HTTP/1.1\r\nHost: x\r\n",
    b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Encoding: br\r\n",
    b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n",
])  # fmt: skip
@pytest.mark.parametrize("kind", [b"Transfer-Encoding: chunked\r\n\r\n", b"Content-Length: 9000000000\r\n\r\n"])
def test_a_refused_body_without_end(start, connect, head, kind, monkeypatch):
    monkeypatch.setattr(connections, "_MOST_DISCARDED", 2**20)
    server = start(max_body_bytes=2**18)
    connection = connect(server, head + kind)
    part = bytes(2**16)
    if b"chunked" in kind:
        part = b"10000\r\n" + part + b"\r\n"
    sent = 0
    with suppress(ConnectionResetError, BrokenPipeError):
        while sent < 2**27:
            connection.sendall(part)
            sent += len(part)
    assert sent < 2**25  # the bound, and what the two systems have in their buffers


def test_a_refused_body_that_stops(start, connect):
    server = start(read_seconds=0.3)
    connection = connect(server, b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
    assert b'{"error":"Not Found"}' in rest(connection)


def test_a_refused_body_that_comes_slowly(start, connect):
    server = start(read_seconds=0.3)
    connection = connect(server, b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
    sent = 0
    with suppress(ConnectionResetError, BrokenPipeError):
        while sent < 1000:  # 20 s
            connection.sendall(b"x")
            sent += 1
            time.sleep(0.02)
    assert sent < 1000


def test_the_connection_goes_on_after_a_refused_body(start, connect):
    server = start()
    body = bytes(2**20)
    connection = connect(server, b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    responses = rest(connection)
    assert responses.count(b"HTTP/1.1 404") == responses.count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize("max_batch", [1, 4])
def test_requests_of_clients_that_went_away_are_not_run(start, connect, slow, max_batch):
    server = start(workers=1, queue=20, max_batch=max_batch, max_delay_seconds=0)
    go, calls = slow(server)
    body = png(20, 20)
    first = connect(server, HEAD % len(body) + body)
    until(lambda: len(calls) == 1)
    gone = [connect(server, HEAD % len(body) + body) for _ in range(10)]
    until(lambda: server.metric("krl_requests_in_progress") == 11)
    for connection in gone:
        connection.close()
    until(lambda: server.metric("krl_requests_in_progress") == 1)
    go.set()
    assert first.recv(100).startswith(b"HTTP/1.1 200")
    assert server.ask("POST", "/classify", body).status == 200
    assert len(calls) == 2


@pytest.mark.parametrize("what", ["running", "batch", "body"])
def test_the_server_stops_in_its_time(start, connect, slow, what):
    server = start(workers=1, grace_seconds=1, max_batch=4 if what == "batch" else 1, max_delay_seconds=0)
    go, calls = slow(server)
    body = png(20, 20)
    connection = connect(server, HEAD % len(body) + (b"" if what == "body" else body))
    until(lambda: server.metric("krl_requests_in_progress") == 1 and (calls or what == "body"))
    thread = next(thread for thread in threading.enumerate() if getattr(thread, "_target", None) == server.server.run)
    server.server.should_exit = True
    thread.join(15)
    assert not thread.is_alive()
    go.set()
    response = rest(connection)
    assert response.startswith(b"HTTP/1.1 503")
    assert "the server is stopped before" in error_of(response)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000, 400),
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"GET /classify/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"DELETE /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        (b"BREW /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
    ],
)
def test_errors_of_every_layer_are_json(server, connect, request_, status):
    response = rest(connect(server, request_))
    assert response.startswith(b"HTTP/1.1 %d" % status)
    assert error_of(response)


@pytest.mark.parametrize("path", ["/metrics", "/v2/health", "/v2/models/tiny"])
def test_failures_of_ours_are_json(server, monkeypatch, path):
    def wrong(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(type(server.model.backend), "name", property(wrong))
    answer = server.ask("GET", path)
    assert (answer.status, answer.json()) == (500, {"error": "an unexpected failure; the server's log has it"})
