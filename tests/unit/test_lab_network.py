"""The LAN's switch, with plain sockets in the place of QEMU's cards."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.network import MAX_QUEUE_BYTES, Network, Switch, port_socket
from tests.lab.process import connect_unix

NAMES = ["rack", "neighbour", "nas"]
MACS = {name: bytes([0x52, 0x54, 0, 0, 0, number]) for number, name in enumerate(NAMES)}
BROADCAST = b"\xff" * 6


def frame(source: str, target: str | None, payload: bytes = b"payload") -> bytes:
    destination = BROADCAST if target is None else MACS[target]
    return destination + MACS[source] + b"\x08\x00" + payload


class Card:
    """The other end of a machine's LAN cable."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.socket = connect_unix(directory, port_socket(name))
        self.socket.settimeout(5)

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(struct.pack(">I", len(each)) + each for each in frames))

    def receive(self) -> bytes:
        (size,) = struct.unpack(">I", self._exactly(4))
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more, "the switch hung up"
            data += more
        return data

    def hears_nothing(self) -> bool:
        self.socket.settimeout(0.2)
        try:
            return not self.socket.recv(1)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(5)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    # Deeper than a socket's path may be: the lab must not care where a checkout lies.
    directory = tmp_path / ("deep" * 25)
    directory.mkdir()
    lan = Network(directory)
    lan.start(NAMES)
    yield lan
    lan.stop()


@pytest.fixture
def plug(network: Network) -> Iterator[Callable[[str], Card]]:
    cards: list[Card] = []

    def plug_in(name: str) -> Card:
        card = Card(network.directory, name)
        cards.append(card)
        wait_until(lambda: name in network.plugged())
        return card

    yield plug_in
    for card in cards:
        card.socket.close()


def wait_until(holds: Callable[[], bool], timeout_seconds: float = 30) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def meet(*cards: Card) -> None:
    """Let the switch learn every card: each calls out in turn, and the others hear it."""
    for card in cards:
        card.send(frame(card.name, None, b"hello"))
        for other in cards:
            if other is not card:
                assert other.receive().endswith(b"hello")


def test_known_addresses_get_their_frames_alone(plug: Callable[[str], Card]) -> None:
    rack, neighbour, nas = (plug(name) for name in NAMES)
    meet(rack, neighbour, nas)
    rack.send(frame("rack", "nas", b"for the nas"))
    assert nas.receive().endswith(b"for the nas")
    assert neighbour.hears_nothing()


def test_broadcast_reaches_everyone_else(plug: Callable[[str], Card]) -> None:
    rack, neighbour, nas = (plug(name) for name in NAMES)
    meet(rack, neighbour, nas)
    rack.send(frame("rack", None, b"who has"))
    assert neighbour.receive().endswith(b"who has")
    assert nas.receive().endswith(b"who has")


def test_cut_and_heal_between_two(network: Network, plug: Callable[[str], Card]) -> None:
    rack, neighbour, nas = (plug(name) for name in NAMES)
    meet(rack, neighbour, nas)
    network.cut("rack", "nas")
    rack.send(frame("rack", "nas"), frame("rack", "neighbour", b"still here"))
    assert neighbour.receive().endswith(b"still here")
    assert nas.hears_nothing()
    network.heal("rack", "nas")
    rack.send(frame("rack", "nas", b"back"))
    assert nas.receive().endswith(b"back")


def test_cut_from_everyone(network: Network, plug: Callable[[str], Card]) -> None:
    rack, neighbour, nas = (plug(name) for name in NAMES)
    meet(rack, neighbour, nas)
    network.cut("rack")
    rack.send(frame("rack", None))
    nas.send(frame("nas", "rack"), frame("nas", "neighbour", b"the others talk"))
    assert neighbour.receive().endswith(b"the others talk")
    assert rack.hears_nothing()


def test_cutting_an_unknown_machine_is_an_error(network: Network) -> None:
    with pytest.raises(KeyError, match="no machine named printer"):
        network.cut("rack", "printer")


def test_frames_are_counted_by_pair(network: Network, plug: Callable[[str], Card]) -> None:
    rack, nas = plug("rack"), plug("nas")
    meet(rack, nas)
    network.reset_counts()
    rack.send(*[frame("rack", "nas", b"x" * 86)] * 3)
    for _ in range(3):
        nas.receive()
    network.cut("rack", "nas")
    rack.send(frame("rack", "nas"))
    wait_until(lambda: network.counts()["rack", "nas"].dropped > 0)
    counts = network.counts()
    assert (counts["rack", "nas"].frames, counts["rack", "nas"].bytes) == (3, 300)
    assert counts["nas", "rack"].frames == 0


def test_a_crashed_machine_comes_back(network: Network, plug: Callable[[str], Card]) -> None:
    rack, nas = plug("rack"), plug("nas")
    meet(rack, nas)
    # Half a frame, then the power is cut.
    rack.socket.sendall(struct.pack(">I", 1000) + b"half")
    rack.socket.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: "rack" not in network.plugged())
    again = plug("rack")
    meet(again, nas)
    again.send(frame("rack", "nas", b"rebooted"))
    assert nas.receive().endswith(b"rebooted")


def test_a_machine_that_does_not_read_loses_frames_not_framing() -> None:
    switch = Switch(["rack", "nas"])
    # The switch only asks whether a connection is there; queues are flushed by its server.
    left, right = socket.socketpair()
    with left, right:
        switch.ports["nas"].connection = left
        one = frame("rack", "nas", b"x" * 1400)
        framed = struct.pack(">I", len(one)) + one
        for _ in range(1000):
            switch.feed("rack", framed)
        queued = bytes(switch.ports["nas"].queued)
        assert len(queued) <= MAX_QUEUE_BYTES
        assert queued == framed * (len(queued) // len(framed))
        count = switch.counts["rack", "nas"]
        assert count.frames + count.dropped == 1000
        assert count.dropped > 0


@pytest.mark.parametrize("cut_at", [1, 3, 4, 9, 30])
def test_frames_may_arrive_in_pieces(cut_at: int) -> None:
    switch = Switch(["rack", "nas"])
    left, right = socket.socketpair()
    with left, right:
        switch.ports["nas"].connection = left
        one = frame("rack", "nas", b"in two pieces")
        framed = struct.pack(">I", len(one)) + one
        assert switch.feed("rack", framed[:cut_at]) == set()
        assert switch.feed("rack", framed[cut_at:] + framed) == {"nas"}
        assert bytes(switch.ports["nas"].queued) == framed * 2


def test_nonsense_instead_of_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="rack sent a frame of"):
        Switch(["rack", "nas"]).feed("rack", b"\xff" * 64)
