"""The queue: a real process behind a real router, killed, filled, drained and looked into."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from holdfast.host_programs import queue as queue_program
from holdfast.host_programs.queue import ATTEMPTS, Queue, Request, Store, main
from tests.unit.fake_upstreams import (
    AUTHORISED,
    COMPLETIONS,
    PROMPT,
    Reply,
    Running,
    StandIn,
    folder_for_sockets,
    running,
    settings_of,
    until,
)
from tests.unit.test_clouds import hiding, told

_START = """
import os, sys
from holdfast.host_programs import queue as queue_program
os.dup2(int(sys.argv[1]), queue_program.LISTEN_FD)
queue_program.PAUSE_SECONDS = 0.02
sys.exit(queue_program.main(sys.argv[2:]))
"""


class Rack:
    """A floor that is away, its router with a queue, and the holder of the queue's socket."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.floor = StandIn("floor")
        self.store = self.folder / "state" / "queue.db"
        self.store.parent.mkdir(mode=0o700)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{folder}/queue.sock")
        self.listener.listen(64)
        self.router: Running
        self._stack = ExitStack()
        self._queue: subprocess.Popen[bytes] | None = None

    def start(self, entries: int = 50, keep_hours: float = 1) -> None:
        """Start what does not run."""
        settings = settings_of([self.floor], {"floor": True, "queue": {}})
        self.router = self._stack.enter_context(running(settings, str(self.folder)))
        self._stack.enter_context(running(settings, str(self.folder), drains=True))
        self.start_queue(entries, keep_hours)

    def start_queue(self, entries: int = 50, keep_hours: float = 1) -> None:
        """Start the queue, as systemd does it."""
        fd = self.listener.fileno()
        self._queue = subprocess.Popen(
            [sys.executable, "-c", _START, str(fd), "serve", str(self.store)]
            + ["--ask", str(self.folder / "drain.sock"), "--entries", str(entries)]
            + ["--concurrent-requests", "1", "--keep-hours", str(keep_hours)],
            pass_fds=[fd],
            umask=0o077,
        )

    def kill_queue(self) -> None:
        """kill -9."""
        if self._queue is not None:
            self._queue.send_signal(signal.SIGKILL)
            self._queue.wait()

    def cut_power(self) -> None:
        """End everything at once; what is on disk stays."""
        self.kill_queue()
        self._stack.close()
        self._stack = ExitStack()

    def end(self) -> None:
        """End everything for good."""
        self.cut_power()
        self.floor.down()
        self.listener.close()
        shutil.rmtree(self.folder)

    def ask(self, text: str, **more: Any) -> Reply:
        """Ask for a completion."""
        return self.router.ask(body={**PROMPT, "prompt": text, **more})

    def fetch(self, place: str) -> Reply:
        """Ask for an answer."""
        return self.router.ask(place, method="GET")

    def wait_for(self, place: str) -> Reply:
        """The answer that lies at a place, once it does."""
        until(lambda: self.fetch(place).status != 202)
        return self.fetch(place)


@pytest.fixture
def rack() -> Iterator[Rack]:
    made = Rack(folder_for_sockets())
    yield made
    made.end()


def _place(reply: Reply) -> str:
    assert (reply.status, reply.engine) == (202, "queue"), reply
    said = json.loads(reply.body)
    assert said["answer"] == reply.headers["location"] == f"/v1/queue/{said['id']}"
    assert reply.headers["retry-after"]
    return str(said["answer"])


def test_what_was_accepted_is_answered_in_order_after_kills_and_a_power_cut(rack: Rack) -> None:
    rack.start()
    texts = [f"question {number}" for number in range(12)]
    places = [_place(rack.ask(text)) for text in texts[:4]]
    rack.kill_queue()
    rack.start_queue()
    places += [_place(rack.ask(text)) for text in texts[4:8]]
    assert rack.fetch(places[0]).status == 202
    rack.cut_power()
    rack.start()
    places += [_place(rack.ask(text)) for text in texts[8:]]
    rack.floor.up()
    until(lambda: len(rack.floor.seen) >= 3)
    rack.kill_queue()
    rack.start_queue()
    replies = [rack.wait_for(place) for place in places]
    assert {(reply.status, reply.engine) for reply in replies} == {(200, "floor")}
    assert {reply.body for reply in replies} == {b'{"by": "floor"}'}
    asked = [json.loads(seen.body)["prompt"] for seen in rack.floor.seen]
    # One may have been asked twice: what was under way when the queue was killed.
    assert list(dict.fromkeys(asked)) == texts
    assert len(asked) <= len(texts) + 1
    until(lambda: rack.router.ask("/health", method="GET").status == 200)
    assert rack.ask("now").engine == "floor"


def test_what_was_accepted_is_answered_though_its_caller_has_gone(rack: Rack) -> None:
    rack.start()
    body = json.dumps({**PROMPT, "prompt": "long gone"})
    headers = f"Host: x\r\n{AUTHORISED}Content-Length: {len(body)}\r\n"
    rack.kill_queue()
    # The queue starts again and finds a request whose caller goes while it reads it.
    with rack.router.connect() as caller:
        caller.sendall(f"POST {COMPLETIONS} HTTP/1.1\r\n{headers}\r\n{body}".encode())
        rack.start_queue()
        until(lambda: rack.store.exists() and Store(rack.store).oldest())
    rack.floor.does = "work"
    rack.floor.up()
    until(lambda: rack.floor.seen)
    rack.floor.does = 200
    until(lambda: Store(rack.store).oldest() is None)
    assert (len(rack.floor.seen), rack.floor.left) == (1, 0)


@pytest.mark.parametrize("length", ["Content-Length: {}", "Transfer-Encoding: chunked"])
def test_no_request_hides_in_the_body_of_a_get(tmp_path: Path, length: str) -> None:
    store = Store(tmp_path / "queue.db")
    made = queue_program.handler(Queue(store, "/nowhere", 5, 60))
    hidden = b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
    said = told(made, hiding("/v1/queue/0", length, hidden))
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1 ") == 1
    assert store.oldest() is None


def test_the_queue_is_asked_by_who_has_the_key_alone(rack: Rack) -> None:
    rack.start()
    place = _place(rack.ask("mine"))
    for key in (None, "another"):
        assert rack.router.ask(place, method="GET", key=key).status == 401
    assert rack.fetch("/v1/queue/" + "0" * 32).status == 404
    assert rack.fetch("/v1/queue/").status == 404
    assert rack.router.ask("/v1/models", method="GET").status == 503
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in rack.store.parent.iterdir()}
    assert set(modes) >= {"queue.db", "queue.db-wal"}
    assert set(modes.values()) == {0o600}


def test_a_full_queue_says_when_to_come_again(rack: Rack) -> None:
    rack.start(entries=3)
    for number in range(3):
        _place(rack.ask(f"question {number}"))
    reply = rack.ask("one more")
    assert (reply.status, reply.engine) == (503, None)
    assert reply.headers["retry-after"]
    assert "the queue is full (3 requests)" in json.loads(reply.body)["error"]["message"]


CANNOT_WAIT = {
    json.dumps({**PROMPT, "stream": True}).encode(): 503,
    b"not json": 400,
    b"[1]": 400,
    b"[" * 100_000: 400,
    b'{"prompt": "' + b"x" * queue_program.BODY_MAX_BYTES + b'"}': 413,
}


def test_what_cannot_wait_is_told_so_at_once(rack: Rack) -> None:
    rack.start()
    for body, status in CANNOT_WAIT.items():
        reply = rack.router.ask(body=body)
        assert (reply.status, reply.engine) == (status, None)
    with sqlite3.connect(rack.store) as looked:
        assert looked.execute("SELECT count(*) FROM entry").fetchone() == (0,)


def test_answers_go_when_their_time_is_over_and_requests_never(tmp_path: Path) -> None:
    store = Store(tmp_path / "queue.db")
    kept, gone = store.add("/p", b"kept", 9), store.add("/p", b"gone", 9)
    assert kept and gone
    first, second = store.take(), store.take()
    assert first and second
    store.put_back(first, attempted=False)
    store.answer(second, queue_program.Answer(200, "text/plain", "a", b"said"))
    store.forget(before=0)
    assert store.find(gone)[1] == queue_program.Answer(200, "text/plain", "a", b"said")
    store.forget(before=2e12)
    assert (store.find(kept), store.find(gone)) == ((True, None), (False, None))


def test_what_is_kept_is_on_disk_before_it_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path / "queue.db")
    settings = {
        name: store._db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "secure_delete")
    }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}
    program = "import sys; from pathlib import Path\n"
    program += "from holdfast.host_programs.queue import Store\n"
    program += "s = Store(Path(sys.argv[1])); print('READY', flush=True)\n"
    program += "s.add('/p', b'b', 9); print('SAID', flush=True)"
    done = subprocess.run(
        ["strace", "-f", "-e", "trace=fsync,fdatasync,write", sys.executable, "-c", program]
        + [str(tmp_path / "other.db")],
        capture_output=True,
        text=True,
        check=True,
    )
    between = done.stderr.partition("READY")[2].partition("SAID")[0]
    assert "sync(" in between


def test_the_oldest_is_asked_first_and_a_taken_one_not_twice(tmp_path: Path) -> None:
    store = Store(tmp_path / "queue.db")
    for number in range(3):
        store.add("/p", str(number).encode(), 9)
    first, second = store.take(), store.take()
    assert first and second
    assert (first.body, second.body) == (b"0", b"1")
    store.put_back(first, attempted=False)
    again = store.take()
    assert again and again.body == b"0"


def test_a_request_that_is_the_death_of_engines_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_program, "PAUSE_SECONDS", 0.01)
    store = Store(tmp_path / "queue.db")
    queue = Queue(store, "nowhere", 9, 3600)
    asked: list[bytes] = []

    def ask(
        method: str, path: str, body: bytes | None, seconds: float
    ) -> queue_program.Answer | None:
        asked.append(body or b"health")
        said = 502 if body == b"deadly" else 200
        return queue_program.Answer(said, "text/plain", "a", b"said")

    monkeypatch.setattr(queue, "_ask", ask)
    deadly, harmless = queue.accept("/p", b"deadly"), queue.accept("/p", b"harmless")
    assert deadly and harmless
    threading.Thread(target=queue.work, daemon=True).start()
    until(lambda: store.find(harmless)[1])
    _, given_up = store.find(deadly)
    assert given_up and given_up.status == 502
    assert asked.count(b"deadly") == ATTEMPTS


def test_an_outage_is_no_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "queue.db")
    queue = Queue(store, str(tmp_path / "absent.sock"), 9, 3600)
    store.add("/p", b"body", 9)
    for _ in range(2 * ATTEMPTS):
        request = store.take()
        assert request and not queue._settle(request)
    assert store.take() == Request(1, "/p", b"body", 0)


@pytest.mark.parametrize(("minutes", "status"), [(9, 0), (11, 1)])
def test_a_request_that_waits_too_long_is_an_alert(
    tmp_path: Path, minutes: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "queue.db"
    judge = ["age", str(path), "--max-age-minutes", "10"]
    assert main(judge) == 0
    store = Store(path)
    assert main(judge) == 0
    store.add("/p", b"body", 9)
    with store._db:
        store._db.execute("UPDATE entry SET asked = asked - ?", (minutes * 60,))
    assert main(judge) == status
    assert ("has waited for 11 minutes" in capsys.readouterr().err) == bool(status)


def test_the_program_needs_nothing_but_python() -> None:
    program = Path(queue_program.__file__)
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(program), "age", os.devnull + "x"]
        + ["--max-age-minutes", "1"],
        check=False,
    )
    assert done.returncode == 0
