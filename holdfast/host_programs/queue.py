#!/usr/bin/python3 -I
"""Keep requests on disk until an engine answers them, in order, and keep the answers.

It is copied to hosts, so it uses only the standard library of Python 3.11. The store is SQLite,
which confirms a commit only when it is on disk. The queues in the distributions need a server (rq)
or keep no answers (persist-queue). A request is sent at least once: again if power was lost before
its answer was on disk.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import secrets
import socket
import socketserver
import sqlite3
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

LISTEN_FD = 3
"""The file descriptor of the socket that systemd passes on."""
ANSWERS = "/v1/queue/"
BODY_MAX_BYTES = 8 << 20
ASK_SECONDS = 3600
PAUSE_SECONDS = 2.0
"""Time between checks for an upstream that answers again."""
RETRY_SECONDS = 10
"""Retry-After for callers."""
ATTEMPTS = 5
"""After this many failed attempts a request gets an error: it may crash each engine."""
NOBODY = (502, 503, 504)
"""A router's statuses when no upstream answered."""

_SCHEMA = """
PRAGMA auto_vacuum = FULL;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA secure_delete = ON;
CREATE TABLE IF NOT EXISTS entry (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    asked REAL NOT NULL,
    path TEXT NOT NULL,
    body BLOB NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    answered REAL,
    status INTEGER,
    kind TEXT,
    engine TEXT,
    answer BLOB
);
"""


@dataclass(frozen=True)
class Request:
    """A waiting request."""

    number: int
    path: str
    body: bytes
    attempts: int


@dataclass(frozen=True)
class Answer:
    """An engine's answer; ``kind`` is the body's content type."""

    status: int
    kind: str
    engine: str
    body: bytes


class Store:
    """The entries on disk; every change is on disk when its method returns."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._taken: set[int] = set()
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.executescript(_SCHEMA)

    def add(self, path: str, body: bytes, entries: int) -> str | None:
        """Store a request; return its id, or None if there are ``entries`` already."""
        identity = secrets.token_hex(16)
        with self._lock, self._db:
            (count,) = self._db.execute("SELECT count(*) FROM entry").fetchone()
            if count >= entries:
                return None
            self._db.execute(
                "INSERT INTO entry (id, asked, path, body) VALUES (?, ?, ?, ?)",
                (identity, time.time(), path, body),
            )
        return identity

    def take(self) -> Request | None:
        """The oldest waiting request that this process has not taken yet."""
        with self._lock:
            waiting = self._db.execute(
                "SELECT number, path, body, attempts FROM entry WHERE answered IS NULL"
                " ORDER BY number LIMIT ?",
                (len(self._taken) + 1,),
            )
            for row in waiting:
                if row[0] not in self._taken:
                    self._taken.add(row[0])
                    return Request(*row)
        return None

    def put_back(self, request: Request, *, attempted: bool) -> None:
        """Put a request back in its place."""
        with self._lock, self._db:
            self._db.execute(
                "UPDATE entry SET attempts = attempts + ? WHERE number = ?",
                (attempted, request.number),
            )
            self._taken.discard(request.number)

    def answer(self, request: Request, answer: Answer) -> None:
        """Store an answer, and delete the request's text."""
        with self._lock, self._db:
            self._db.execute(
                "UPDATE entry SET body = x'', answered = ?, status = ?, kind = ?, engine = ?,"
                " answer = ? WHERE number = ?",
                (time.time(), answer.status, answer.kind, answer.engine, answer.body)
                + (request.number,),
            )
            self._taken.discard(request.number)

    def find(self, identity: str) -> tuple[bool, Answer | None]:
        """Whether there is such an entry, and its answer, if any."""
        with self._lock:
            row = self._db.execute(
                "SELECT answered, status, kind, engine, answer FROM entry WHERE id = ?", (identity,)
            ).fetchone()
        if row is None:
            return False, None
        return True, Answer(*row[1:]) if row[0] is not None else None

    def forget(self, before: float) -> None:
        """Remove entries that were answered before that time (seconds since the epoch)."""
        with self._lock, self._db:
            self._db.execute("DELETE FROM entry WHERE answered < ?", (before,))

    def oldest(self) -> float | None:
        """The time of the oldest waiting request; None if there is none."""
        with self._lock:
            row = self._db.execute("SELECT min(asked) FROM entry WHERE answered IS NULL")
            (asked,) = row.fetchone()
        return None if asked is None else float(asked)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("engines", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket's path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Queue:
    """Accepts requests and gets them answered."""

    def __init__(self, store: Store, ask: str, entries: int, keep_seconds: float) -> None:
        self.store = store
        self.entries = entries
        self._ask_at = ask
        self._keep_seconds = keep_seconds
        self._news = threading.Condition()

    def accept(self, path: str, body: bytes) -> str | None:
        """Store a request; return its id, or None if the queue is full."""
        self.store.forget(time.time() - self._keep_seconds)
        identity = self.store.add(path, body, self.entries)
        with self._news:
            self._news.notify()
        return identity

    def work(self) -> None:
        """Send waiting requests, the oldest first, for ever."""
        while True:
            request = self.store.take()
            if request is None:
                with self._news:
                    self._news.wait(PAUSE_SECONDS)
                self.store.forget(time.time() - self._keep_seconds)
            elif not self._settle(request):
                time.sleep(PAUSE_SECONDS)

    def _settle(self, request: Request) -> bool:
        """Whether the request is finished."""
        if not self._anybody():
            self.store.put_back(request, attempted=False)
            return False
        answer = self._ask("POST", request.path, request.body, ASK_SECONDS)
        if answer is None or answer.status in NOBODY:
            if request.attempts + 1 < ATTEMPTS:
                self.store.put_back(request, attempted=True)
                return False
            said = f"asked {ATTEMPTS} times, and no engine finished it"
            answer = Answer(502, "application/json", "", error(502, said))
        self.store.answer(request, answer)
        return True

    def _anybody(self) -> bool:
        health = self._ask("GET", "/health", None, 10)
        return health is not None and health.status == 200

    def _ask(self, method: str, path: str, body: bytes | None, seconds: float) -> Answer | None:
        connection = UnixConnection(self._ask_at, seconds)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            said = connection.getresponse()
            kind = said.getheader("Content-Type", "application/json")
            return Answer(said.status, kind, said.getheader("X-Holdfast-Engine", ""), said.read())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def error(status: int, message: str) -> bytes:
    """An error's body in the format of the engines' clients."""
    said = {"error": {"message": message, "type": "queue", "code": status}}
    return json.dumps(said).encode()


def handler(queue: Queue) -> type[BaseHTTPRequestHandler]:
    """Handles one connection; only the router can connect."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 120

        def do_POST(self) -> None:
            said = self.headers.get("Content-Length", "")
            if not said.isdigit():
                # An unread body would be parsed as the next request.
                self.close_connection = True
                self._refuse(411, "the request has no Content-Length")
                return
            length = int(said)
            body = self.rfile.read(min(length, BODY_MAX_BYTES))
            left = length - len(body)
            while left and (part := self.rfile.read(min(left, 1 << 20))):
                left -= len(part)
            if left:
                self.close_connection = True
                return
            if length > BODY_MAX_BYTES:
                self._refuse(
                    413, "no upstream can answer now, and the request is too long for the queue"
                )
                return
            try:
                asked = json.loads(body)
                streams = asked.get("stream")
            except (ValueError, AttributeError, RecursionError):
                self._refuse(400, "the body is not a JSON object")
                return
            if streams:
                self._refuse(503, "no upstream can answer now, and a stream cannot be queued")
            elif identity := queue.accept(self.path, body):
                self._wait_for(identity)
            else:
                self._refuse(
                    503,
                    f"no upstream can answer now, and the queue is full ({queue.entries} requests)",
                )

        def do_GET(self) -> None:
            if not {"Content-Length", "Transfer-Encoding"}.isdisjoint(self.headers):
                # An unread body would be parsed as the next request.
                self.close_connection = True
                self._refuse(400, "a GET request must have no body")
                return
            identity = self.path.removeprefix(ANSWERS)
            known, answer = queue.store.find(identity)
            if answer:
                self._send(answer.status, answer.kind, answer.engine, answer.body)
            elif known:
                self._wait_for(identity)
            else:
                self._refuse(404, "there is no such request, or its answer has expired")

        def _wait_for(self, identity: str) -> None:
            place = f"{ANSWERS}{identity}"
            said = {"id": identity, "status": "waiting", "answer": place}
            body = json.dumps(said).encode()
            self._send(202, "application/json", "queue", body, {"Location": place})

        def _refuse(self, status: int, message: str) -> None:
            self._send(status, "application/json", "", error(status, message))

        def _send(
            self,
            status: int,
            kind: str,
            engine: str,
            body: bytes,
            more: dict[str, str] | None = None,
        ) -> None:
            headers = {"Content-Type": kind, "Content-Length": str(len(body)), **(more or {})}
            if engine:
                headers["X-Holdfast-Engine"] = engine
            if status in (202, 503):
                headers["Retry-After"] = str(RETRY_SECONDS)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing: the router logs each request, and no text may be logged."""

    return Handler


class Server(socketserver.ThreadingUnixStreamServer):
    """A server on the socket that systemd made."""

    daemon_threads = True

    def __init__(self, fd: int, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__("", handler, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=fd)


def _end(failure: threading.ExceptHookArgs) -> None:
    # A queue that accepts requests but no longer sends them would look good: so end, and systemd
    # restarts it.
    sys.stderr.write(f"{failure.exc_type.__name__}: {failure.exc_value}\n")
    os._exit(1)


def serve(asked: argparse.Namespace) -> int:
    """Accept and answer until stopped."""
    threading.excepthook = _end
    store = Store(asked.store)
    queue = Queue(store, asked.ask, asked.entries, asked.keep_hours * 3600)
    for _ in range(asked.concurrent_requests):
        threading.Thread(target=queue.work, daemon=True).start()
    with Server(LISTEN_FD, handler(queue)) as server:
        server.serve_forever()
    return 0


def age(asked: argparse.Namespace) -> int:
    """Exit with 1 when a request has waited for too long."""
    oldest = Store(asked.store).oldest() if asked.store.exists() else None
    minutes = (time.time() - oldest) / 60 if oldest else 0
    if minutes <= asked.max_age_minutes:
        return 0
    text = f"a request has waited for {minutes:.0f} minutes: no engine or floor answers"
    print(text, file=sys.stderr)  # noqa: T201
    return 1


def main(arguments: list[str]) -> int:
    """Run the queue, or check its age."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    serving = verbs.add_parser("serve")
    serving.add_argument("store", type=Path)
    serving.add_argument("--ask", required=True, help="the socket that leads to the engines")
    serving.add_argument("--entries", type=int, required=True)
    serving.add_argument("--concurrent-requests", type=int, required=True)
    serving.add_argument("--keep-hours", type=float, required=True)
    judging = verbs.add_parser("age")
    judging.add_argument("store", type=Path)
    judging.add_argument("--max-age-minutes", type=float, required=True)
    asked = parser.parse_args(arguments)
    return serve(asked) if asked.verb == "serve" else age(asked)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
