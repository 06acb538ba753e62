#!/usr/bin/python3 -I
"""Keep requests on disk until an engine answers them, in order, and the answers until fetched.

Placed on hosts as it is, so it uses the standard library only and needs Python 3.11. The store is
SQLite, which commits to disk before it says so; what the distributions package as a queue needs a
server beside it (rq) or keeps no answer to be fetched (persist-queue).

A request is asked again when the power was cut before its answer was on disk: at least once.
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
"""Where systemd hands over the socket that it holds."""
ANSWERS = "/v1/queue/"
BODY_MAX_BYTES = 8 << 20
ASK_SECONDS = 3600
PAUSE_SECONDS = 2.0
"""Between looks at whether anybody answers again."""
RETRY_SECONDS = 10
"""When a caller should come back."""
ATTEMPTS = 5
"""A request that engines break off so often is answered with that: one may be the death of each."""
NOBODY = (502, 503, 504)
"""What a router says when no engine came to an end."""

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
    """A request that waits."""

    number: int
    path: str
    body: bytes
    attempts: int


@dataclass(frozen=True)
class Answer:
    """What an engine said; ``kind`` is the body's content type."""

    status: int
    kind: str
    engine: str
    body: bytes


class Store:
    """The entries on disk; every change is there when its method returns."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._taken: set[int] = set()
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.executescript(_SCHEMA)

    def add(self, path: str, body: bytes, entries: int) -> str | None:
        """Keep a request; its id, or None where there are ``entries`` already."""
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
        """The oldest request that waits and was not taken since this program began."""
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
        """Let a request wait again, where it was."""
        with self._lock, self._db:
            self._db.execute(
                "UPDATE entry SET attempts = attempts + ? WHERE number = ?",
                (attempted, request.number),
            )
            self._taken.discard(request.number)

    def answer(self, request: Request, answer: Answer) -> None:
        """Keep an answer, and the request's text no longer."""
        with self._lock, self._db:
            self._db.execute(
                "UPDATE entry SET body = x'', answered = ?, status = ?, kind = ?, engine = ?,"
                " answer = ? WHERE number = ?",
                (time.time(), answer.status, answer.kind, answer.engine, answer.body)
                + (request.number,),
            )
            self._taken.discard(request.number)

    def find(self, identity: str) -> tuple[bool, Answer | None]:
        """Whether there is such an entry, and its answer where it has one."""
        with self._lock:
            row = self._db.execute(
                "SELECT answered, status, kind, engine, answer FROM entry WHERE id = ?", (identity,)
            ).fetchone()
        if row is None:
            return False, None
        return True, Answer(*row[1:]) if row[0] is not None else None

    def forget(self, before: float) -> None:
        """Remove what was answered before that time (seconds since the epoch)."""
        with self._lock, self._db:
            self._db.execute("DELETE FROM entry WHERE answered < ?", (before,))

    def oldest(self) -> float | None:
        """When the oldest request that waits was asked; None where none does."""
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
    """What takes requests in and has them answered."""

    def __init__(self, store: Store, ask: str, entries: int, keep_seconds: float) -> None:
        self.store = store
        self.entries = entries
        self._ask_at = ask
        self._keep_seconds = keep_seconds
        self._news = threading.Condition()

    def accept(self, path: str, body: bytes) -> str | None:
        """Keep a request; its id, or None where there is no room."""
        self.store.forget(time.time() - self._keep_seconds)
        identity = self.store.add(path, body, self.entries)
        with self._news:
            self._news.notify()
        return identity

    def work(self) -> None:
        """Have what waits answered, the oldest first, for ever."""
        while True:
            request = self.store.take()
            if request is None:
                with self._news:
                    self._news.wait(PAUSE_SECONDS)
                self.store.forget(time.time() - self._keep_seconds)
            elif not self._settle(request):
                time.sleep(PAUSE_SECONDS)

    def _settle(self, request: Request) -> bool:
        """Whether the request needs no more asking."""
        if not self._anybody():
            self.store.put_back(request, attempted=False)
            return False
        answer = self._ask("POST", request.path, request.body, ASK_SECONDS)
        if answer is None or answer.status in NOBODY:
            if request.attempts + 1 < ATTEMPTS:
                self.store.put_back(request, attempted=True)
                return False
            said = f"asked {ATTEMPTS} times, and no engine came to the end of it"
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
    """An error's body, as the engines' clients read it."""
    said = {"error": {"message": message, "type": "queue", "code": status}}
    return json.dumps(said).encode()


def handler(queue: Queue) -> type[BaseHTTPRequestHandler]:
    """What answers one connection; only the router can make one."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 120

        def do_POST(self) -> None:
            said = self.headers.get("Content-Length", "")
            if not said.isdigit():
                # What was not read must not be taken for the next request.
                self.close_connection = True
                self._refuse(411, "say how long the request is")
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
                self._refuse(413, "no upstream can answer now, and it is too long to be kept")
                return
            try:
                asked = json.loads(body)
                streams = asked.get("stream")
            except (ValueError, AttributeError, RecursionError):
                self._refuse(400, "this is no JSON object")
                return
            if streams:
                self._refuse(503, "no upstream can answer now, and a stream cannot wait")
            elif identity := queue.accept(self.path, body):
                self._wait_for(identity)
            else:
                self._refuse(
                    503, f"no upstream can answer now, and {queue.entries} are kept already"
                )

        def do_GET(self) -> None:
            if not {"Content-Length", "Transfer-Encoding"}.isdisjoint(self.headers):
                # What is not read would be taken for the next request.
                self.close_connection = True
                self._refuse(400, "a GET has no body")
                return
            identity = self.path.removeprefix(ANSWERS)
            known, answer = queue.store.find(identity)
            if answer:
                self._send(answer.status, answer.kind, answer.engine, answer.body)
            elif known:
                self._wait_for(identity)
            else:
                self._refuse(404, "there is no such request, or its answer was kept long enough")

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
            """Say nothing: the router logs each request, and text belongs in no journal."""

    return Handler


class Server(socketserver.ThreadingUnixStreamServer):
    """A server on the socket that systemd made."""

    daemon_threads = True

    def __init__(self, fd: int, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__("", handler, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=fd)


def _end(failure: threading.ExceptHookArgs) -> None:
    # A queue that takes in and no longer asks would look well: systemd restarts it.
    sys.stderr.write(f"{failure.exc_type.__name__}: {failure.exc_value}\n")
    os._exit(1)


def serve(asked: argparse.Namespace) -> int:
    """Take in and answer until ended."""
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
    text = f"a request has waited for {minutes:.0f} minutes: no engine and no floor answers"
    print(text, file=sys.stderr)  # noqa: T201
    return 1


def main(arguments: list[str]) -> int:
    """Keep the queue, or judge its age."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    serving = verbs.add_parser("serve")
    serving.add_argument("store", type=Path)
    serving.add_argument("--ask", required=True, help="the socket of the way to the engines")
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
