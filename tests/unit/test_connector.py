"""Which way a connection takes: the tailnet first, every time, and the LAN where that is shut."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.sshuserclient import client as sshuserclient

from holdfast import connector as connectors
from holdfast.connector import RackConnector

Ways = list[tuple[str, bool]]


def _connector(monkeypatch: pytest.MonkeyPatch, lan: str | None, answers: Ways) -> Any:
    """A connector; ``answers`` are the names that will be tried and whether each lets us in."""

    def connect(self: Any) -> None:
        name, lets_in = answers.pop(0)
        assert self.data["ssh_hostname"] == name
        if not lets_in:
            raise OSError("nobody answers")

    monkeypatch.setattr(SSHConnector, "_connect", connect)
    connector: Any = RackConnector.__new__(RackConnector)
    connector.host = SimpleNamespace(
        name="rack", data=SimpleNamespace(get={"lan_address": lan}.get)
    )
    connector.data = {"ssh_hostname": "rack"}
    connector.client = None
    return connector


def test_a_rack_that_left_the_tailnet_is_reached_by_its_lan_and_then_by_the_tailnet_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: Ways = [("rack", False), ("10.0.0.5", True), ("rack", True)]
    connector = _connector(monkeypatch, "10.0.0.5", tried)
    connector._connect()
    assert connector.via == "lan"
    connector._connect()
    assert connector.via == "tailnet"
    assert tried == []


def test_a_lan_that_does_not_answer_leaves_the_tailnet_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: Ways = [("rack", False), ("10.0.0.5", False), ("rack", True)]
    connector = _connector(monkeypatch, "10.0.0.5", tried)
    with pytest.raises(OSError, match="nobody answers"):
        connector._connect()
    connector._connect()
    assert connector.via == "tailnet"


def test_without_a_lan_address_the_tailnet_s_refusal_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connector = _connector(monkeypatch, None, [("rack", False)])
    with pytest.raises(OSError, match="nobody answers"):
        connector._connect()


def test_a_connection_ends_when_its_proxy_command_does() -> None:
    proxy = sshuserclient.ProxyCommand("echo SSH-2.0")
    proxy.settimeout(5)
    assert proxy.recv(64) == b"SSH-2.0\n"
    # paramiko takes nothing for the end of the connection.
    assert proxy.recv(64) == b""
    proxy.close()


def test_a_silent_proxy_command_is_not_waited_for_longer_than_asked() -> None:
    proxy = sshuserclient.ProxyCommand("cat")
    proxy.settimeout(0.2)
    with pytest.raises(TimeoutError):
        proxy.recv(64)
    proxy.close()


class _Anyone(paramiko.ServerInterface):
    def check_auth_none(self, username: str) -> int:
        return AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED


class _Cable:
    """Two sockets with a cable between them, which can be cut without either's knowledge."""

    def __init__(self) -> None:
        self.here, near = socket.socketpair()
        far, self.there = socket.socketpair()
        self.whole = True
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        while data := one.recv(4096):
            if self.whole:
                other.sendall(data)


def test_a_rack_that_falls_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectors, "ASKED_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(connectors, "SILENT_SECONDS", 1.0)
    cable = _Cable()
    server = paramiko.Transport(cable.there)
    server.add_server_key(paramiko.RSAKey.generate(2048))
    server.start_server(event=threading.Event(), server=_Anyone())
    client = paramiko.Transport(cable.here)
    client.start_client(timeout=10)
    client.auth_none("operator")
    channel = client.open_session(timeout=10)
    connectors.watch(client)
    # One that answers is left alone, however long its command says nothing.
    channel.settimeout(2)
    with pytest.raises(TimeoutError):
        channel.recv(1)
    assert client.is_active()
    cable.whole = False
    channel.settimeout(10)
    assert channel.recv(1) == b""
    assert not client.is_active()
    server.close()
