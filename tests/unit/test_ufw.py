"""The order of a firewall change, and that only a new login lets it stay."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from pyinfra.api import FunctionCommand, StringCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.state import State
from pyinfra.context import ctx_host

from facts.firewall import FamilyState, Firewall, FirewallState
from facts.tailnet import Node, TailnetNode
from holdfast.firewall import ANYWHERE, LOAD, UNTIL_TAILNET, WITHOUT_TAILNET, Family, Hole
from holdfast.render import render
from holdfast.settings import HostSettings
from operations import apt_repository, ufw
from tests.unit.local_host import LocalHost
from tests.unit.recorded_facts import read
from tests.unit.test_firewall import BARE, _settings

RACK = read(Firewall)


def _with_lan_ssh(family: Family, state: FamilyState, why: str = UNTIL_TAILNET) -> FamilyState:
    chain = "ufw-user-input" if family == 4 else "ufw6-user-input"
    source = ANYWHERE[family]
    hole = Hole(family, 22, "tcp", source, None, False, why)
    return dataclasses.replace(
        state,
        rules=(*state.rules, hole.rule),
        live=(*state.live, f"-A {chain} -p tcp -m tcp --dport 22 -j ACCEPT"),
        user_input_lines=state.user_input_lines + 1,
    )


def _open(why: str) -> FirewallState:
    rack: FirewallState = RACK
    v4, v6 = _with_lan_ssh(4, rack.v4, why), _with_lan_ssh(6, rack.v6, why)
    return dataclasses.replace(rack, v4=v4, v6=v6)


STILL_OPEN, OPEN_AGAIN = _open(UNTIL_TAILNET), _open(WITHOUT_TAILNET)


@dataclasses.dataclass
class Connector:
    """A way in that works or does not; by ``once`` a single login succeeds."""

    open: dict[str | None, bool]
    once: str = ""

    def new_login(self, path: str | None = None) -> None:
        if not self.open[path]:
            raise ConnectError("a new login failed")
        if path == self.once:
            self.open[path] = False


@dataclasses.dataclass
class Host(LocalHost):
    connector: Any = None
    said: list[str] = dataclasses.field(default_factory=list)
    print_prefix: str = "[here] "

    def log_styled(self, message: str, **_: Any) -> None:
        self.said.append(message)


def _host(state: FirewallState, **paths: bool) -> Host:
    ways: dict[str | None, bool] = {None: paths.get("present", True)}
    return Host(
        facts={Firewall: state, TailnetNode: Node()},
        connector=Connector({**ways, "tailnet": paths.get("tailnet", True)}),
    )


def _run(operation: Any, host: Host, settings: HostSettings | None = None) -> list[str]:
    """What pyinfra would run: commands as text, and a function until the first that fails."""
    done: list[str] = []
    with ctx_host.use(host):
        for command in operation._inner(settings=settings or _settings()):
            if isinstance(command, FunctionCommand):
                call = cast(Callable[..., bool], command.function)
                if not call(cast(State, None), host, *command.args):
                    return [*done, "FAILED"]
                done.append("PROVED")
            else:
                assert isinstance(command, StringCommand)
                done.append(command.get_raw_value())
    return done


def test_nothing_is_armed_when_nothing_changes() -> None:
    assert _run(ufw.enforce, _host(RACK)) == []


def test_a_change_is_armed_first_and_disarmed_only_after_its_proof() -> None:
    disabled = dataclasses.replace(RACK, options={**RACK.options, "ENABLED": "no"})
    host = _host(disabled)
    with ctx_host.use(host):
        commands = list(ufw.enforce._inner(settings=_settings()))
    *before, enable, load, proof, disarm = commands
    assert [each.get_raw_value().rpartition("/")[2] for each in before] == [
        "holdfast-firewall keep",
        "holdfast-firewall arm 180",
    ]
    assert enable.get_raw_value() == "ufw --force enable"
    assert load.get_raw_value() == LOAD
    assert isinstance(proof, FunctionCommand)
    assert disarm.get_raw_value().endswith("holdfast-firewall disarm")


def test_the_deadline_runs_only_while_something_could_lock_out() -> None:
    done = _run(ufw.enforce, _host(BARE, present=False))
    armed = next(i for i, command in enumerate(done) if "holdfast-firewall arm" in command)
    assert done[0].endswith("holdfast-firewall keep")
    assert all("enable" not in command for command in done[:armed])
    assert done[armed + 1] == "ufw --force enable"


def test_a_change_that_locks_out_is_never_disarmed() -> None:
    host = _host(BARE, present=False)
    done = _run(ufw.enforce, host)
    assert done[-1] == "FAILED"
    assert not any("disarm" in command for command in done)
    assert host.said == [
        "a new login failed; the host restores its previous firewall within 180 seconds."
    ]


def test_a_change_that_did_not_take_is_never_disarmed() -> None:
    # The stub's firewall stays what it was under every command.
    host = _host(BARE)
    assert _run(ufw.enforce, host)[-1] == "FAILED"
    assert "The firewall is not as declared" in host.said[0]


@pytest.mark.parametrize(
    "unproved", [dataclasses.replace(RACK, armed=True), dataclasses.replace(RACK, proved=False)]
)
def test_what_an_earlier_run_or_a_hand_left_unproved_is_proved(unproved: FirewallState) -> None:
    done = _run(ufw.enforce, _host(unproved))
    assert [command.rsplit("/", 1)[-1] for command in done] == [
        "holdfast-firewall keep",
        "holdfast-firewall arm 180",
        "holdfast-firewall load",
        "PROVED",
        "holdfast-firewall disarm",
    ]


def test_a_connector_that_cannot_prove_a_login_changes_nothing_for_good() -> None:
    host = _host(dataclasses.replace(RACK, armed=True))
    host.connector = object()
    assert _run(ufw.enforce, host)[-1] == "FAILED"
    assert "only the @rack connector" in host.said[0]


def test_lan_ssh_is_kept_open_by_repairs_until_it_is_withdrawn() -> None:
    assert _run(ufw.enforce, _host(STILL_OPEN)) == []


def test_lan_ssh_is_not_withdrawn_without_a_login_over_the_tailnet() -> None:
    host = _host(STILL_OPEN, tailnet=False)
    assert _run(ufw.withdraw_lan_ssh, host) == ["FAILED"]
    assert host.said == [
        "a new login failed; SSH stays open on the LAN until a login over the tailnet succeeds."
    ]


def test_lan_ssh_is_withdrawn_after_one() -> None:
    done = _run(ufw.withdraw_lan_ssh, _host(STILL_OPEN))
    assert done[0] == "PROVED"
    assert done[1].endswith("keep")
    assert done[2].endswith("arm 180")
    assert done[3:5] == [
        "ufw delete allow in proto tcp from 0.0.0.0/0 to 0.0.0.0/0 port 22",
        "ufw delete allow in proto tcp from ::/0 to ::/0 port 22",
    ]


def test_a_withdrawal_that_the_tailnet_does_not_outlive_is_never_disarmed() -> None:
    # The present connection still works: it came in before the door was shut.
    host = _host(STILL_OPEN)
    host.connector.once = "tailnet"
    done = _run(ufw.withdraw_lan_ssh, host)
    assert done[-1] == "FAILED"
    assert not any("disarm" in command for command in done)
    assert host.said == [
        "a new login failed; the host restores its previous firewall within 180 seconds."
    ]


def test_lan_ssh_is_not_withdrawn_while_the_node_key_ends() -> None:
    host = _host(STILL_OPEN)
    host.facts[TailnetNode] = Node(expires=datetime(2030, 1, 2, tzinfo=UTC))
    assert _run(ufw.withdraw_lan_ssh, host) == ["FAILED"]
    (sentence,) = host.said
    assert "the node key of this host expires on 2030-01-02" in sentence
    accepted = _settings(tailnet={"key_may_expire": True})
    assert _run(ufw.withdraw_lan_ssh, host, accepted)[0] == "PROVED"


def test_what_the_host_has_opened_itself_is_left_to_it_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = _host(OPEN_AGAIN)
    assert _run(ufw.enforce, host) == []
    with caplog.at_level("WARNING"):
        assert _run(ufw.withdraw_lan_ssh, host) == []
    assert "SSH is open on the LAN because this host lost its tailnet" in caplog.text
    # An inventory that has come to forbid it has it taken away.
    forbidden = _settings(ssh={"lan_return": False})
    assert any("ufw delete" in step for step in _run(ufw.enforce, host, forbidden))


def test_withdrawn_once_there_is_nothing_left_to_do() -> None:
    assert _run(ufw.withdraw_lan_ssh, _host(RACK)) == []


def test_the_script_parses(tmp_path: Path) -> None:
    script = tmp_path / "docker-user"
    script.write_text(render("firewall/docker-user.j2", begin="# B", end="# E", guard="G"))
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0


def test_a_key_is_told_by_its_suffix() -> None:
    settings = _settings(
        docker={
            "repository": {
                "url": "https://mirror.example/debian",
                "key_url": "https://mirror.example/key.gpg",
                "suite": "trixie",
            }
        }
    )
    assert settings.docker is not None
    repository = settings.docker.repository
    assert repository is not None
    assert apt_repository.key_path("docker", repository) == "/etc/apt/keyrings/docker.gpg"
    armoured = repository.model_copy(update={"key_url": "https://mirror.example/gpg"})
    assert apt_repository.key_path("docker", armoured) == "/etc/apt/keyrings/docker.asc"
