"""Which way a connection takes: the tailnet first, every time, and the LAN where that is shut."""

from __future__ import annotations

import grp
import logging
import os
import pwd
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import paramiko
import pytest
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.operation import add_op
from pyinfra.api.operations import run_ops
from pyinfra.api.state import StateStage
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.sshuserclient import client as sshuserclient
from pyinfra.connectors.util import CommandOutput, OutputLine

from facts.framed import is_framed
from holdfast import connector as connectors
from holdfast.connector import RackConnector
from operations import host_files
from operations.host_files import HostFile
from tests.unit.local_host import LocalHost

Ways = list[tuple[str, bool | Exception]]


def _connector(monkeypatch: pytest.MonkeyPatch, lan: str | None, answers: Ways) -> Any:
    """A connector; ``answers`` are the names that will be tried and whether each lets us in."""

    def connect(self: Any) -> None:
        name, lets_in = answers.pop(0)
        assert self.data["ssh_hostname"] == name
        if isinstance(lets_in, Exception):
            raise lets_in
        if not lets_in:
            raise OSError("no answer")

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


def test_a_login_that_the_tailnet_refuses_is_tried_by_the_lan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What pyinfra makes of a key that is refused.
    refused = ConnectError("Authentication error")
    connector = _connector(monkeypatch, "10.0.0.5", [("rack", refused), ("10.0.0.5", True)])
    connector._connect()
    assert connector.via == "lan"


def test_a_lan_that_does_not_answer_leaves_the_tailnet_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: Ways = [("rack", False), ("10.0.0.5", False), ("rack", True)]
    connector = _connector(monkeypatch, "10.0.0.5", tried)
    with pytest.raises(OSError, match="no answer"):
        connector._connect()
    connector._connect()
    assert connector.via == "tailnet"


def test_without_a_lan_address_the_tailnet_s_refusal_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connector = _connector(monkeypatch, None, [("rack", False)])
    with pytest.raises(OSError, match="no answer"):
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
    # Several times what a busy machine keeps a thread waiting.
    monkeypatch.setattr(connectors, "SILENT_SECONDS", 3.0)
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
    channel.settimeout(4)
    with pytest.raises(TimeoutError):
        channel.recv(1)
    assert client.is_active()
    cable.whole = False
    channel.settimeout(10)
    assert channel.recv(1) == b""
    assert not client.is_active()
    server.close()


TAILNET, LAN = "127.0.0.2", "127.0.0.3"


class _Shell(_Anyone):
    """Lets everybody in; every command ends with ``status``."""

    def __init__(self, status: int) -> None:
        self.status = status

    def check_auth_password(self, username: str, password: str) -> int:
        return AUTH_SUCCESSFUL

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        channel.send_exit_status(self.status)
        return True


@contextmanager
def _sshd(address: str, port: int = 0, status: int = 0) -> Iterator[int]:
    """An SSH server at one address; its port."""
    key = paramiko.RSAKey.generate(2048)
    with socket.create_server((address, port)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    transport = paramiko.Transport(listener.accept()[0])
                    transport.add_server_key(key)
                    transport.start_server(event=threading.Event(), server=_Shell(status))

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _logged_in(monkeypatch: pytest.MonkeyPatch, via: str, port: int, folder: Path) -> RackConnector:
    """A connector whose present connection came by ``via``."""
    known = SimpleNamespace(ssh_hostname=TAILNET, lan_address=LAN)
    monkeypatch.setattr(connectors.site, "settings_of", lambda _: known)
    for file in ("config", "known_hosts"):
        (folder / file).touch()
    connector: Any = RackConnector.__new__(RackConnector)
    connector.host = SimpleNamespace(name="rack")
    connector.via = via
    connector.make_paramiko_kwargs = lambda: {
        "hostname": TAILNET if via == "tailnet" else LAN,
        "port": port,
        "username": "operator",
        "password": "x",
        "allow_agent": False,
        "look_for_keys": False,
        "timeout": 10,
        "_pyinfra_ssh_config_file": str(folder / "config"),
        "_pyinfra_ssh_known_hosts_file": str(folder / "known_hosts"),
        "_pyinfra_ssh_strict_host_key_checking": "no",
    }
    return cast(RackConnector, connector)


@pytest.mark.parametrize("via", ["tailnet", "lan"])
@pytest.mark.parametrize(("answers", "address"), [("tailnet", TAILNET), ("lan", LAN)])
def test_a_new_login_takes_the_way_it_is_asked_for_and_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, via: str, answers: str, address: str
) -> None:
    other: Any = "lan" if answers == "tailnet" else "tailnet"
    with _sshd(address) as port:
        connector = _logged_in(monkeypatch, via, port, tmp_path)
        connector.new_login(cast(connectors.Path, answers))
        with pytest.raises(ConnectError, match=f"a new login by the {other} failed"):
            connector.new_login(other)
        # Unless it is asked for one: then the way of the present connection.
        if via == answers:
            connector.new_login()
        else:
            with pytest.raises(ConnectError, match=f"a new login by the {via} failed"):
                connector.new_login()


def test_a_new_login_that_can_run_nothing_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with _sshd(TAILNET, status=1) as port:
        connector = _logged_in(monkeypatch, "tailnet", port, tmp_path)
        with pytest.raises(ConnectError, match="could not run a command"):
            connector.new_login()


def _deployed_to_two(
    monkeypatch: pytest.MonkeyPatch, path: Path, answer: tuple[bool, list[OutputLine]]
) -> tuple[State, list[str]]:
    """A file is placed on two hosts, of which ``odd`` gives every command one ``answer``.

    The state afterwards, and the commands that reached ``odd``.
    """
    reached: list[str] = []

    def run(self: Any, command: Any, **arguments: Any) -> tuple[bool, CommandOutput]:
        text = command if isinstance(command, str) else command.get_raw_value()
        if self.host.name == "odd":
            reached.append(text)
            return answer[0], CommandOutput(answer[1])
        done = LocalHost()._run(text, str(arguments.get("_stdin") or ""))
        lines = [OutputLine("stdout", line) for line in done.stdout.splitlines()]
        return done.returncode == 0, CommandOutput(lines)

    monkeypatch.setattr(SSHConnector, "run_shell_command", run)
    monkeypatch.setattr(RackConnector, "connect", lambda self: None)
    monkeypatch.setattr(connectors.site, "load", lambda _: None)
    inventory = Inventory((["@rack/odd", "@rack/well"], {}))  # type: ignore[no-untyped-call]
    state = State(check_for_changes=False)
    state.init(inventory, Config())  # type: ignore[no-untyped-call]
    state.set_stage(StateStage.Connect)
    connect_all(state)
    state.set_stage(StateStage.Prepare)
    me, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    add_op(state, host_files.place, files=[HostFile(str(path), "text", user=me, group=group)])
    state.set_stage(StateStage.Execute)
    run_ops(state)
    return state, reached


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((True, []), "is incomplete"),
        ((True, [OutputLine("stdout", "Welcome")]), "is incomplete"),
        ((False, [OutputLine("stderr", "disk on fire")]), "disk on fire"),
    ],
    ids=["nothing", "a banner alone", "a failure"],
)
def test_a_host_that_does_not_answer_a_fact_is_changed_in_nothing(
    answer: tuple[bool, list[OutputLine]],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("pyinfra"), "propagate", True)
    state, reached = _deployed_to_two(monkeypatch, tmp_path / "file", answer)
    # The question, and nothing that pyinfra takes from the fact's default.
    (asked,) = reached
    assert is_framed(asked)
    assert [host.name for host in state.failed_hosts] == ["odd"]
    assert sentence in caplog.text
    assert (tmp_path / "file").read_text() == "text", "the other host is served"
