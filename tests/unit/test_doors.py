"""Doors and routers under those who begin requests and do not end them: real HAProxy processes."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from holdfast import doors, router
from holdfast.doors import PATIENCE
from tests.unit.fake_upstreams import (
    AUTHORISED,
    COMPLETIONS,
    PROMPT,
    Running,
    StandIn,
    door,
    floor_door,
    running,
    settings_of,
    until,
)

ATTACKERS = 256
GOOD_SECONDS = 2
"""In which a good caller has its answer, in spite of the others."""

_LINE = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\n"
HALVES = {
    "nothing": "",
    "half a line": "POST /v1/comp",
    "half the headers": _LINE,
    "headers without end": _LINE + "X: " + "x" * 4000,
    "half a body": _LINE + "Content-Length: 1000\r\n\r\n{",
    "a body that is refused": _LINE.replace("/v1/", "/v2/") + "Content-Length: 1000\r\n\r\n{",
    "half a body in chunks": _LINE + "Transfer-Encoding: chunked\r\n\r\n5\r\n{",
    "a whole request": "GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
}


@contextmanager
def routed(stand_in: StandIn) -> Iterator[Running]:
    with running(settings_of([stand_in], {"engines": [stand_in.name]})) as found:
        yield found


Front = Callable[[StandIn], AbstractContextManager[Running]]
FRONTS = pytest.mark.parametrize("front", [routed, door, floor_door])


@pytest.fixture
def engine() -> Iterator[StandIn]:
    made = StandIn("a")
    made.up()
    yield made
    made.down()


FEW = replace(PATIENCE, connections=40, source_connections=20)
"""Few places, so that taking every one takes no thousand connections."""
SHORT = replace(FEW, header_seconds=1, body_seconds=2, idle_seconds=2)


@pytest.fixture
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fronts with another patience than the real one."""
    monkeypatch.setattr(router, "PATIENCE", request.param)
    monkeypatch.setattr(doors, "PATIENCE", request.param)


few = pytest.mark.parametrize("patience", [FEW], indirect=True, ids=["few"])
short = pytest.mark.parametrize("patience", [SHORT], indirect=True, ids=["short"])


@contextmanager
def held(front: Running, text: str, count: int, source: str) -> Iterator[list[socket.socket]]:
    """So many connections from one address, each with the same half of a request."""
    made = []
    try:
        for _ in range(count):
            # Who is not let in may be told so before it has said a word.
            with suppress(OSError):
                address = ("127.0.0.1", front.at)
                made.append(socket.create_connection(address, 10, (source, 0)))
                made[-1].sendall(text.encode())
        yield made
    finally:
        for each in made:
            each.close()


def seconds(front: Running) -> float:
    """How long a good caller waits for its answer."""
    began = time.monotonic()
    assert front.ask().engine
    return time.monotonic() - began


@FRONTS
@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_halves_of_requests_keep_no_caller_out(engine: StandIn, front: Front, half: str) -> None:
    with front(engine) as found, held(found, half, ATTACKERS, "127.0.0.1"):
        assert max(seconds(found) for _ in range(3)) < GOOD_SECONDS


@FRONTS
@pytest.mark.usefixtures("patience")
@few
@pytest.mark.parametrize("half", ["nothing", "half the headers", "half a body"])
def test_one_source_cannot_take_every_place(engine: StandIn, front: Front, half: str) -> None:
    with front(engine) as found, held(found, HALVES[half], 100, "127.0.0.2"):
        assert max(seconds(found) for _ in range(3)) < GOOD_SECONDS


def ended(connection: socket.socket, within: float, trickle: bytes = b"") -> bool:
    """Whether the other side closes the connection in so many seconds."""
    deadline = time.monotonic() + within
    connection.settimeout(0.5)
    while time.monotonic() < deadline:
        try:
            if trickle:
                connection.sendall(trickle)
            if not connection.recv(65536):
                return True
        except TimeoutError:
            pass
        except OSError:
            return True
    return False


@FRONTS
@pytest.mark.usefixtures("patience")
@short
def test_a_place_that_is_held_is_given_back(engine: StandIn, front: Front) -> None:
    limit = SHORT.header_seconds + 2
    with front(engine) as found:
        for half in ("nothing", "half a line", "half the headers"):
            with held(found, HALVES[half], 1, "127.0.0.1") as (connection,):
                # Who sends a byte now and then has no more time for it.
                trickle = b"x" if half != "nothing" else b""
                assert ended(connection, limit, trickle), half
        with held(found, HALVES["a whole request"], 1, "127.0.0.1") as (connection,):
            assert ended(connection, SHORT.idle_seconds + 2)
        for half in ("half a body", "a body that is refused", "half a body in chunks"):
            with held(found, HALVES[half], 1, "127.0.0.1") as (connection,):
                assert ended(connection, SHORT.body_seconds + 2), half


@FRONTS
@pytest.mark.usefixtures("patience")
@short
def test_every_place_is_taken_for_seconds_at_most(engine: StandIn, front: Front) -> None:
    half = HALVES["half the headers"]
    with front(engine) as found:
        sources: list[Any] = [held(found, half, 20, f"127.0.0.{n}") for n in range(2, 6)]
        for each in sources:
            each.__enter__()
        assert seconds(found) < SHORT.header_seconds + GOOD_SECONDS
        for each in sources:
            each.__exit__(None, None, None)


@FRONTS
@pytest.mark.parametrize("length", ["Content-Length: 33", "Transfer-Encoding: chunked"])
def test_a_get_has_no_body(engine: StandIn, front: Front, length: str) -> None:
    hidden = "POST /invocations HTTP/1.1\r\nX: y\r\n"
    text = f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{AUTHORISED}{length}\r\n\r\n{hidden}"
    with front(engine) as found:
        assert found.send(text.encode()).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 411 "))
    assert engine.seen == []


_BODY = json.dumps(PROMPT)
WHOLE = f"{_LINE}{AUTHORISED}Content-Length: {len(_BODY)}\r\n\r\n{_BODY}"


@FRONTS
def test_an_engine_stops_work_for_a_caller_who_has_gone(engine: StandIn, front: Front) -> None:
    engine.does = "work"
    with front(engine) as found:
        with held(found, WHOLE, 3, "127.0.0.1"):
            until(lambda: len(engine.seen) == 3)
        until(lambda: engine.left == 3, 3)


def test_nor_does_one_further_down() -> None:
    a, b = StandIn("a"), StandIn("b")
    b.up()
    b.does = "work"
    with running(settings_of([a, b], {"engines": ["a", "b"]})) as found:
        with held(found, WHOLE, 1, "127.0.0.1"):
            until(lambda: len(b.seen) == 1)
        until(lambda: b.left == 1, 3)
    b.down()
