"""The lab's LAN: an Ethernet switch in user space, so that no bridge, tap or root is needed.

Each machine's LAN card is a QEMU stream netdev connected to this switch: every frame travels as a
4-byte big-endian length and the frame. The switch learns addresses as a real one does, floods what
it does not know, counts what it delivers per pair of machines, and drops what is cut.

`python -m tests.lab.network DIRECTORY NAME...` runs it; `Network` is the client.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.process import alive, connect_unix, stop

MAX_FRAME_BYTES = 65_550
"""Larger than any Ethernet frame: a bigger length means the stream lost its framing."""

MAX_QUEUE_BYTES = 1 << 20
"""What the switch holds for a slow machine before it drops frames, as real switches do."""

READ_BYTES = 1 << 18
GROUP_BIT = 0x01
CONTROL_SOCKET = "switch.sock"


def port_socket(name: str) -> str:
    """The socket, relative to the lab's directory, that a machine's LAN card connects to."""
    return f"lan-{name}.sock"


@dataclass
class Port:
    """One machine's place in the switch; it outlives the machine's connections."""

    name: str
    connection: socket.socket | None = None
    received: bytearray = field(default_factory=bytearray)
    queued: bytearray = field(default_factory=bytearray)


@dataclass
class Count:
    """What passed from one machine to another, and what a cut or a full queue dropped."""

    frames: int = 0
    bytes: int = 0
    dropped: int = 0


class Switch:
    """The switching itself: frames in, frames queued for other ports. No sockets are opened here.

    Broadcast and unknown addresses go to every port, so `counts` shows those for each receiver.
    """

    def __init__(self, names: list[str]) -> None:
        self.ports = {name: Port(name) for name in names}
        self.addresses: dict[bytes, str] = {}
        self.counts = {(a, b): Count() for a in names for b in names if a != b}
        self.cuts: set[tuple[str, str]] = set()

    def feed(self, source: str, data: bytes) -> set[str]:
        """Take bytes a machine sent; returns the names of ports that now have something queued.

        Raises ValueError when the stream's framing is lost.
        """
        port = self.ports[source]
        buffer = port.received
        buffer += data
        touched: set[str] = set()
        start, end = 0, len(buffer)
        while end - start >= 4:
            size = int.from_bytes(buffer[start : start + 4], "big")
            if not 14 <= size <= MAX_FRAME_BYTES:
                raise ValueError(f"{source} sent a frame of {size} bytes")
            if end - start - 4 < size:
                break
            self._forward(source, bytes(buffer[start : start + 4 + size]), touched)
            start += 4 + size
        if start:
            del buffer[:start]
        return touched

    def _forward(self, source: str, framed: bytes, touched: set[str]) -> None:
        destination, sender = framed[4:10], framed[10:16]
        self.addresses[sender] = source
        known = None if destination[0] & GROUP_BIT else self.addresses.get(destination)
        if known is not None:
            if known != source:
                self._deliver(source, known, framed, touched)
            return
        for name in self.ports:
            if name != source:
                self._deliver(source, name, framed, touched)

    def _deliver(self, source: str, target: str, framed: bytes, touched: set[str]) -> None:
        count, port = self.counts[source, target], self.ports[target]
        full = len(port.queued) + len(framed) > MAX_QUEUE_BYTES
        if (source, target) in self.cuts or port.connection is None or full:
            count.dropped += 1
            return
        port.queued += framed
        count.frames += 1
        count.bytes += len(framed) - 4
        touched.add(target)

    def command(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a control request: cut, heal, counts or reset."""
        verb = request["verb"]
        if verb in ("cut", "heal"):
            pairs = self._pairs(request["names"])
            self.cuts = self.cuts | pairs if verb == "cut" else self.cuts - pairs
        elif verb == "reset":
            self.counts = {pair: Count() for pair in self.counts}
        return {
            "counts": [
                {"source": a, "target": b, **vars(count)} for (a, b), count in self.counts.items()
            ],
            "plugged": [port.name for port in self.ports.values() if port.connection],
        }

    def _pairs(self, names: list[str]) -> set[tuple[str, str]]:
        """Both directions between the named machines; one name means everyone else, none all."""
        unknown = set(names) - set(self.ports)
        if unknown:
            raise KeyError(f"no machine named {', '.join(sorted(unknown))} on this LAN")
        every = set(self.counts)
        if not names:
            return every
        if len(names) == 1:
            return {pair for pair in every if names[0] in pair}
        return {pair for pair in every if set(pair) <= set(names)}


class Server:
    """The switch's sockets, in the current directory: one a machine, and one for control."""

    def __init__(self, names: list[str]) -> None:
        self.switch = Switch(names)
        self.selector = selectors.DefaultSelector()
        for name in names:
            self._register(_listen(port_socket(name)), functools.partial(self._accept, name))
        self._register(_listen(CONTROL_SOCKET), self._answer)

    def serve(self) -> None:
        """Switch until the process gets a request to stop."""
        while True:
            for key, events in self.selector.select():
                key.data(key.fileobj, events)

    def _register(self, source: socket.socket, react: Callable[[socket.socket, int], None]) -> None:
        self.selector.register(source, selectors.EVENT_READ, react)

    def _accept(self, name: str, listener: socket.socket, _: int) -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        port = self.switch.ports[name]
        self._close(port)
        port.connection = connection
        self._register(connection, functools.partial(self._serve_port, port))

    def _serve_port(self, port: Port, _: socket.socket, events: int) -> None:
        if port.connection is not None and events & selectors.EVENT_READ:
            self._read(port, port.connection)
        if port.connection is not None and events & selectors.EVENT_WRITE:
            self._flush(port)

    def _read(self, port: Port, connection: socket.socket) -> None:
        try:
            data = connection.recv(READ_BYTES)
            if not data:
                raise ConnectionResetError("the machine went away")
            touched = self.switch.feed(port.name, data)
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            print(f"{port.name}: {error}", file=sys.stderr, flush=True)
            self._close(port)
            return
        for target in touched:
            self._flush(self.switch.ports[target])

    def _flush(self, port: Port) -> None:
        if port.connection is None:
            return
        try:
            del port.queued[: port.connection.send(port.queued)]
        except BlockingIOError:
            pass
        except OSError:
            self._close(port)
            return
        key = self.selector.get_key(port.connection)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if port.queued else 0)
        if key.events != events:
            self.selector.modify(port.connection, events, key.data)

    def _close(self, port: Port) -> None:
        if port.connection is not None:
            self.selector.unregister(port.connection)
            port.connection.close()
        port.connection = None
        port.received.clear()
        port.queued.clear()

    def _answer(self, listener: socket.socket, _: int) -> None:
        connection, _ = listener.accept()
        # A client that says nothing would hold up the LAN.
        connection.settimeout(1)
        with connection, contextlib.suppress(OSError, ValueError):
            request = json.loads(connection.makefile().readline())
            try:
                reply = self.switch.command(request)
            except KeyError as error:
                reply = {"error": str(error.args[0])}
            connection.sendall(json.dumps(reply).encode() + b"\n")


def _listen(path: str) -> socket.socket:
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


@dataclass(frozen=True)
class Traffic:
    """What the switch carried from one machine to another."""

    frames: int
    bytes: int
    dropped: int


class Network:
    """The LAN of one lab, as tests see it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._pid_file = directory / "switch.pid"

    def start(self, names: list[str], timeout_seconds: float = 20) -> None:
        """Start the switch as a process of its own, which outlives the one that started it."""
        if self.running():
            return
        with (self.directory / "switch.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.lab.network", str(self.directory), *names],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=Path(__file__).parents[2],
            )
        self._pid_file.write_text(str(process.pid))
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                self.counts()
                return
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop the switch; machines keep running and find it again when it comes back."""
        stop(self._pid_file, marker=str(self.directory))

    def running(self) -> bool:
        """Whether the switch's process is alive."""
        return alive(self._pid_file, marker=str(self.directory)) is not None

    def cut(self, *names: str) -> None:
        """Drop every frame between these machines; one name cuts it from everyone, none cuts all.

        Raises KeyError for a machine that is not on the LAN.
        """
        self._ask("cut", *names)

    def heal(self, *names: str) -> None:
        """Undo `cut`, with the same meaning of the names."""
        self._ask("heal", *names)

    def counts(self) -> dict[tuple[str, str], Traffic]:
        """Frames and bytes carried, and frames dropped, for each (source, target)."""
        return {
            (row["source"], row["target"]): Traffic(row["frames"], row["bytes"], row["dropped"])
            for row in self._ask("counts")["counts"]
        }

    def plugged(self) -> set[str]:
        """The machines whose LAN card is connected to the switch."""
        return set(self._ask("plugged")["plugged"])

    def reset_counts(self) -> None:
        """Start counting from nought."""
        self._ask("reset")

    def _ask(self, verb: str, *names: str) -> dict[str, Any]:
        with connect_unix(self.directory, CONTROL_SOCKET) as connection:
            connection.settimeout(20)
            connection.sendall(json.dumps({"verb": verb, "names": names}).encode() + b"\n")
            reply: dict[str, Any] = json.loads(connection.makefile().readline())
        if "error" in reply:
            raise KeyError(reply["error"])
        return reply


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="+")
    arguments = parser.parse_args()
    os.chdir(arguments.directory)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Server(arguments.names).serve()
