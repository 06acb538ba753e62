"""Stand-ins beside a real HAProxy: model servers that are away, lie or break off, and a cloud."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from holdfast import floor, router
from holdfast.engines import units
from holdfast.service import texts
from holdfast.settings import HostSettings

SECRETS = {
    "CALLERS_KEY": SecretStr("the,callers'#own$key\\0(1)"),
    "A_KEY": SecretStr("key-of-a-8d1f"),
    "B_KEY": SecretStr("key-of-b-5c2e"),
    "FLOOR_API_KEY": SecretStr("key-of-the-floor-77"),
}
AUTHORISED = f"Authorization: Bearer {SECRETS['CALLERS_KEY'].get_secret_value()}\r\n"
"""The header of a good caller."""
COMPLETIONS = "/v1/completions"
PROMPT = {"model": "llama", "prompt": "a secret of mine", "max_tokens": 1}


def free_port() -> int:
    """A port of loopback on which no program listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: Callable[[], Any], seconds: float = 10) -> Any:
    """Wait for a condition; fails when it does not come."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"it never came that {what}"
        time.sleep(0.01)
    return value


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class _Server(ThreadingHTTPServer):
    request_queue_size = 1024

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of those who have gone."""


@dataclass
class StandIn:
    """A model server at a port of loopback."""

    name: str
    port: int = field(default_factory=free_port)
    does: int | str = 200
    """The status it answers with; "drop": it breaks off; "cut": it does so within its answer;
    "work": it answers when it is to do something else, unless its caller goes before that."""
    left: int = 0
    """How many callers went while it worked."""
    seen: list[Seen] = field(default_factory=list)
    looks: int = 0
    """How often its health was asked since it listens."""
    _server: ThreadingHTTPServer | None = None

    @property
    def is_up(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    def up(self) -> None:
        """Listen."""
        if self._server is None:
            self.looks = 0
            self._server = _Server(("127.0.0.1", self.port), self._handler())
            threading.Thread(target=self._server.serve_forever, args=(0.005,), daemon=True).start()

    def down(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def be(self, is_up: bool) -> None:
        """Listen, or do not; answer properly and remember nothing."""
        self.does, self.left = 200, 0
        self.seen.clear()
        (self.up if is_up else self.down)()

    def wait_until_known(self) -> None:
        """Wait until the one HAProxy that checks its health knows that it is up.

        Checks of a server follow one another: at the second one the first has been counted.
        """
        until(lambda: self.looks >= 2)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path != "/health":
                    self._saw(b"")
                else:
                    stand_in.looks += 1
                self._send(200, b"ok")

            def do_POST(self) -> None:
                body = self._body()
                self._saw(body)
                if stand_in.does == "drop":
                    self.close_connection = True
                elif stand_in.does == "work" and self._is_left():
                    stand_in.left += 1
                    self.close_connection = True
                elif stand_in.does == "cut":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b"half")
                    self.close_connection = True
                else:
                    self._send(int(stand_in.does), json.dumps({"by": stand_in.name}).encode())

            def _is_left(self) -> bool:
                while stand_in.does == "work":
                    if select.select([self.connection], [], [], 0.02)[0]:
                        with contextlib.suppress(ConnectionResetError):
                            return not self.connection.recv(1)
                        return True
                return False

            def _body(self) -> bytes:
                if "Content-Length" in self.headers:
                    return self.rfile.read(int(self.headers["Content-Length"]))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                return b"".join(parts)

            def _saw(self, body: bytes) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                stand_in.seen.append(Seen(self.command, self.path, headers, body))

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("X-Holdfast-Engine", "a-liar")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


class Cloud:
    """A listener that nothing may ever connect to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def visitors(self) -> int:
        """How many connected since the last look."""
        self._listener.setblocking(False)
        count = 0
        while True:
            try:
                self._listener.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()


def settings_of(stand_ins: list[StandIn], declared: dict[str, Any], **more: Any) -> HostSettings:
    """A host with a router, whose engines and floor (by that name) are the stand-ins."""
    ports = {stand_in.name: stand_in.port for stand_in in stand_ins}
    engines = [
        {
            "name": name,
            "checkpoint": "llama",
            "port": port,
            "api_key": f"{name.upper()}_KEY",
            "context_tokens": 256,
            "cache_mib": 1024,
            **more,
        }
        for name, port in ports.items()
        if name != "floor"
    ]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    release = {"version": "1", "url": "https://x.example/l.tgz", "sha256": sha256}
    source = {"source": "https://x.example/small.gguf", "sha256": sha256, "size_mib": 100.0}
    model = {"name": "small", "filename": "small.gguf", **source}
    floor = {"release": release, "model": "small", "port": ports.get("floor", 8080)}
    common = {"name": "work", "profile": "private", "port": 8200, "api_key": "CALLERS_KEY"}
    return HostSettings.model_validate(
        {
            "hostname": "rack",
            "distribution": "debian13",
            "interfaces": {"eth0": {"role": "lan"}},
            "floor": floor if "floor" in ports else None,
            "storage": {"models": [model]},
            "vllm": {"engines": engines} if engines else None,
            "routers": [common | declared],
        }
    )


@dataclass(frozen=True)
class Reply:
    """What a caller was told."""

    status: int
    engine: str | None
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Running:
    """A router's process, and its port or Unix socket."""

    at: int | str
    log: Path

    def connect(self) -> socket.socket:
        """A connection to it."""
        if isinstance(self.at, int):
            return socket.create_connection(("127.0.0.1", self.at), 10)
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(10)
        made.connect(self.at)
        return made

    def ask(
        self,
        path: str = COMPLETIONS,
        body: object = PROMPT,
        key: str | None = SECRETS["CALLERS_KEY"].get_secret_value(),
        method: str = "POST",
        **headers: str,
    ) -> Reply:
        """Send a request and read its answer."""
        connection = http.client.HTTPConnection("router")
        connection.sock = self.connect()
        if key is not None:
            headers = {"Authorization": f"Bearer {key}", **headers}
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(
                method,
                path,
                sent if method == "POST" else None,
                {"Content-Type": "application/json", **headers},
            )
            said = connection.getresponse()
            told = {name.lower(): value for name, value in said.getheaders()}
            return Reply(said.status, told.get("x-holdfast-engine"), told, said.read())
        finally:
            connection.close()

    def send(self, raw: bytes) -> bytes:
        """Send bytes as they are and no more, and read until it closes."""
        with self.connect() as connection:
            connection.sendall(raw)
            # Who says early that no more comes is taken for one who has gone.
            select.select([connection], [], [], 2)
            connection.shutdown(socket.SHUT_WR)
            said = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    said += part
            return said


def folder_for_sockets() -> str:
    """A folder whose name is short: a Unix socket's path has at most 107 characters."""
    return tempfile.mkdtemp(prefix="holdfast-")


def written(settings: HostSettings, folder: str, bind: str, *, drains: bool = False) -> Path:
    """A router's configuration in ``folder``, with its sockets there and quicker looks."""
    (declared,) = settings.routers
    text = router.configuration(settings, declared, bind, folder, drains=drains)
    looks = "inter 2s fastinter 500ms"
    assert looks in text
    text = text.replace(looks, "inter 20ms fastinter 20ms")
    text = text.replace(router.RouterNames(declared).queue_socket, f"{folder}/queue.sock")
    path = Path(folder, "drain.cfg" if drains else "router.cfg")
    path.write_text(text)
    Path(folder, "keys").write_text(router.keys(settings, declared, SECRETS.__getitem__))
    return path


@contextmanager
def running(
    settings: HostSettings, folder: str | None = None, *, drains: bool = False
) -> Iterator[Running]:
    """The one router of a host, as its unit runs it; ``drains``: the queue's way back."""
    own = folder is None
    folder = folder or folder_for_sockets()
    at: int | str = f"{folder}/drain.sock" if drains else free_port()
    bind = f"unix@{at}" if drains else f"127.0.0.1:{at}"
    try:
        with proxy(written(settings, folder, bind, drains=drains), at) as found:
            yield found
    finally:
        if own:
            shutil.rmtree(folder)


@contextmanager
def door(stand_in: StandIn) -> Iterator[Running]:
    """The loopback door of the one engine that the stand-in is, as its unit runs it."""
    settings = settings_of([stand_in], {"engines": [stand_in.name]})
    names = units.every(settings)[0]
    loopback = names.doors[0]
    programs = units.programs_of(settings, names)
    (proxied,) = (each.proxied for each in programs if each.proxied)
    text = texts(programs)[proxied.configuration_of(loopback)]
    with _proxied(stand_in, text, names.socket, loopback.admin) as found:
        yield found


@contextmanager
def floor_door(stand_in: StandIn) -> Iterator[Running]:
    """The same of the floor."""
    (program,) = floor.programs(settings_of([StandIn("floor")], {"floor": True}))
    text = texts([program])["/etc/holdfast/floor/loopback.cfg"]
    with _proxied(stand_in, text, floor.SOCKET) as found:
        yield found


@contextmanager
def _proxied(stand_in: StandIn, text: str, upstream: str, admin: str = "") -> Iterator[Running]:
    """A door's proxy, but for where it listens, and that the stand-in is behind it."""
    folder, port = folder_for_sockets(), free_port()
    replaced = {"fd@3": f"127.0.0.1:{port}", f"unix@{upstream}": f"127.0.0.1:{stand_in.port}"}
    if admin:
        replaced[admin] = f"{folder}/admin.sock"
    for there, here in replaced.items():
        assert there in text
        text = text.replace(there, here)
    file = Path(folder, "door.cfg")
    file.write_text(text)
    try:
        with proxy(file, port) as found:
            yield found
    finally:
        shutil.rmtree(folder)


@contextmanager
def proxy(file: Path, at: int | str) -> Iterator[Running]:
    """HAProxy with a configuration that has it listen there; its folder has its credential."""
    folder = file.parent
    log = file.with_suffix(".log")
    with log.open("wb") as sink:
        process = subprocess.Popen(
            ["env", "--ignore-environment", f"CREDENTIALS_DIRECTORY={folder}"]
            + ["/usr/sbin/haproxy", "-db", "-f", str(file)],
            stdout=sink,
            stderr=sink,
        )
    found = Running(at, log)

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            found.connect().close()
        except OSError:
            return False
        return True

    try:
        until(listens)
        yield found
    finally:
        process.kill()
        process.wait()
