"""The CONNECT proxy lets the controller's tailscaled reach headscale, and nothing else at all."""

from __future__ import annotations

import asyncio

import pytest

from tests.lab.services.proxy_server import REQUEST_LIMIT_BYTES, Proxy

ALLOWED = "headscale.drill:4443"


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.readline()).upper())
    await writer.drain()
    writer.close()


async def _exchange(request: bytes) -> bytes:
    """What a client gets for `request` from a proxy in front of an upper-casing server."""
    target = await asyncio.start_server(_echo, "127.0.0.1", 0)
    proxy = await Proxy(ALLOWED, target.sockets[0].getsockname()[1]).serve(0)
    async with asyncio.timeout(20), target, proxy:
        reader, writer = await asyncio.open_connection(*proxy.sockets[0].getsockname())
        writer.write(request)
        answer = await reader.read()
        writer.close()
    return answer


def test_the_one_destination_is_reached() -> None:
    answer = asyncio.run(_exchange(f"CONNECT {ALLOWED} HTTP/1.1\r\n\r\nhello\n".encode()))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body == b"HELLO\n"


@pytest.mark.parametrize(
    "request_line",
    [
        "CONNECT controlplane.tailscale.com:443 HTTP/1.1",
        "CONNECT headscale.drill:22 HTTP/1.1",
        "CONNECT headscale.drill:44430 HTTP/1.1",
        "CONNECT 127.0.0.1:4443 HTTP/1.1",
        "CONNECT headscale.drill:4443.example.com:443 HTTP/1.1",
        "GET http://headscale.drill:4443/ HTTP/1.1",
        "nonsense",
    ],
)
def test_everything_else_is_refused(request_line: str) -> None:
    answer = asyncio.run(_exchange(f"{request_line}\r\n\r\n".encode()))
    assert answer.startswith(b"HTTP/1.1 403 ")


def test_an_endless_request_is_dropped() -> None:
    assert asyncio.run(_exchange(b"A" * REQUEST_LIMIT_BYTES * 2)) == b""
