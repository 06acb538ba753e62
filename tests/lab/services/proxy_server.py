"""An HTTP CONNECT proxy that knows one destination and refuses everything else.

The controller's tailscaled must find `headscale.drill` without root, so without /etc/hosts, and
must reach nothing but the lab. Given this proxy as its only way out, it does both: the one
allowed `host:port` leads to loopback, any other request is answered with 403.

Run as a script, not as a module: it needs the standard library and nothing else of the lab.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys

REQUEST_LIMIT_BYTES = 16 * 1024
REQUEST_TIMEOUT_SECONDS = 10
COPY_BYTES = 64 * 1024


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(COPY_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()


class Proxy:
    """Answers one client connection at a time to `allowed`, which lies at `target_port`."""

    def __init__(self, allowed: str, target_port: int) -> None:
        self._allowed = allowed
        self._target_port = target_port

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side ends it."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            writer.close()
            return
        request = head.split(b"\r\n", 1)[0].decode("latin-1")
        if request.split(" ")[:2] != ["CONNECT", self._allowed]:
            print(f"refused: {request}", file=sys.stderr, flush=True)
            await self._answer(writer, "403 Forbidden")
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            await self._answer(writer, "502 Bad Gateway")
            return
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_copy(reader, up_writer), _copy(up_reader, writer))

    async def _answer(self, writer: asyncio.StreamWriter, status: str) -> None:
        with contextlib.suppress(OSError):
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
        writer.close()

    async def serve(self, port: int) -> asyncio.Server:
        """Listen on loopback; port 0 means any free one."""
        return await asyncio.start_server(self.handle, "127.0.0.1", port, limit=REQUEST_LIMIT_BYTES)


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", help="only marks the process as this lab's")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--allow", required=True, help="host:port that may be asked for")
    parser.add_argument("--target-port", type=int, required=True)
    arguments = parser.parse_args()
    server = await Proxy(arguments.allow, arguments.target_port).serve(arguments.port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
