"""What root's programs take from a service that has been broken into: so much, and so long."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from holdfast.host_programs import mode as mode_program
from holdfast.host_programs import replace as replace_program
from holdfast.host_programs.mode import Check
from holdfast.host_programs.replace import Job, Replacement

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
Answer = Callable[[socket.socket], None]


def endless(connection: socket.socket) -> None:
    """Send a body that has no end."""
    connection.sendall(HEAD + b"run 0\nwait 0\n")
    while True:
        connection.sendall(b"x" * 65536)


def dripping(connection: socket.socket) -> None:
    """Send a body of which each byte is in time."""
    connection.sendall(HEAD)
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def patient(connection: socket.socket) -> None:
    """Ask for patience without end, which is no answer yet."""
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.02)


@contextlib.contextmanager
def listening(server: socket.socket, answer: Answer) -> Iterator[None]:
    """Answer each client of ``server``."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    with server:
        server.listen()
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)


def replacement(folder: Path) -> Replacement:
    """Of an engine that listens in ``folder``."""
    (folder / "key").write_text("a-key\n")
    told: dict[str, Any] = {
        field.name: "" for field in fields(Job) if MISSING is field.default is field.default_factory
    }
    told |= {"name": "chat", "socket": str(folder / "http.sock"), "key": str(folder / "key")}
    return Replacement(Job(**told), folder / "state")


def unix(path: Path) -> socket.socket:
    """A socket that is bound there, however long the path is."""
    server = socket.socket(socket.AF_UNIX)
    folder = os.open(path.parent, os.O_PATH)
    server.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    return server


def test_an_endless_answer_of_an_engine_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replace_program, "ANSWER_BYTES", 1 << 20)
    with (
        listening(unix(tmp_path / "http.sock"), endless),
        pytest.raises(OSError, match="longer than 1 MiB"),
    ):
        replacement(tmp_path)._ask("GET", "/metrics", None, 10)


@pytest.mark.parametrize("answer", [dripping, patient])
def test_an_engine_that_answers_byte_by_byte_is_not_waited_for(
    tmp_path: Path, answer: Answer
) -> None:
    began = time.monotonic()
    with (
        listening(unix(tmp_path / "http.sock"), answer),
        pytest.raises(TimeoutError, match="no complete answer within"),
    ):
        replacement(tmp_path)._ask("GET", "/metrics", None, 0.5)
    assert time.monotonic() - began < 5


def test_a_key_is_not_sent_to_where_a_link_leads(tmp_path: Path) -> None:
    heard: list[bytes] = []
    with listening(unix(tmp_path / "roots.sock"), lambda it: heard.append(it.recv(65536))):
        (tmp_path / "http.sock").symlink_to(tmp_path / "roots.sock")
        with pytest.raises(OSError, match="refused"):
            replacement(tmp_path)._ask("GET", "/metrics", None, 1)
    assert heard == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_socket_of_anothers_is_not_an_engines(tmp_path: Path) -> None:
    with listening(unix(tmp_path / "http.sock"), endless):
        os.chown(tmp_path / "http.sock", 65534, 65534)
        with pytest.raises(PermissionError, match="different users"):
            replacement(tmp_path)._ask("GET", "/metrics", None, 1)


@contextlib.contextmanager
def service(answer: Answer) -> Iterator[Check]:
    """A service on loopback, and the question how it is."""
    server = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{server.getsockname()[1]}/"
    with listening(server, answer):
        yield Check(url, "idle", 10)


def whole(connection: socket.socket) -> None:
    """Answer well."""
    connection.sendall(HEAD + b"idle")


def test_a_service_that_answers_well_is_well() -> None:
    with service(whole) as check:
        assert check.holds()


@pytest.mark.parametrize("answer", [dripping, patient])
def test_a_service_that_answers_byte_by_byte_is_not_waited_for(answer: Answer) -> None:
    began = time.monotonic()
    with service(answer) as check:
        assert not check.holds(0.5)
    assert time.monotonic() - began < 5


def test_a_long_answer_of_a_service_is_read_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    with service(lambda it: it.sendall(HEAD + b"not yet idle")) as check:
        assert check.holds()
        monkeypatch.setattr(mode_program, "ANSWER_BYTES", 8)
        assert not check.holds()


def test_a_service_leads_root_nowhere_else() -> None:
    asked: list[bytes] = []

    def other(connection: socket.socket) -> None:
        asked.append(b"")
        whole(connection)

    with service(other) as elsewhere:

        def leads(connection: socket.socket) -> None:
            to = f"HTTP/1.1 302 Found\r\nLocation: {elsewhere.url}\r\n\r\n"
            connection.sendall(to.encode())

        with service(leads) as check:
            assert not check.holds()
    assert asked == []
