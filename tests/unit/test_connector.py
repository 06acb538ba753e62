"""Which way a connection takes: the tailnet first, every time, and the LAN where that is shut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.sshuserclient import client as sshuserclient

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
