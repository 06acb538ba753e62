"""sshd: the recorded host, the directives, and the order that keeps everybody able to log in."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api import FunctionCommand
from pyinfra.context import ctx_host

from facts.host_files import PathState, PathStates
from facts.ssh import Home, Sshd, SshState
from holdfast import ssh
from holdfast.render import render
from holdfast.settings import HostSettings
from operations import sshd
from tests.unit.local_host import LocalHost

RECORDED = Path(__file__).parent / "recorded"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f operator"


def _settings(**own: Any) -> HostSettings:
    return HostSettings.model_validate(
        {
            "hostname": "rack",
            "distribution": "debian13",
            "interfaces": {"eth1": {"role": "lan"}},
            "ssh": {"authorised_keys": {"operator": [KEY]}} | own,
        }
    )


def _recorded() -> SshState:
    return Sshd().process((RECORDED / "sshd.txt").read_text().splitlines())


def _converged(settings: HostSettings) -> LocalHost:
    state = replace(_recorded(), effective=frozenset(ssh.in_force(settings, [settings.ssh.port])))
    drop_in = render("ssh/sshd.conf.j2", directives=ssh.directives(settings, [settings.ssh.port]))
    return LocalHost(
        facts={
            Sshd: state,
            PathStates: {
                sshd.DROP_IN: _file(drop_in, "644", "root"),
                "/home/operator/.ssh/authorized_keys": _file(f"{KEY}\n", "600", "operator"),
                "/home/operator/.ssh": PathState("directory", "700", "operator", "operator"),
            },
        }
    )


def _file(content: str, mode: str, owner: str) -> PathState:
    digest = hashlib.sha256(content.encode()).hexdigest()
    return PathState("file", mode, owner, owner, digest)


def _plan(host: LocalHost, settings: HostSettings) -> list[str]:
    """The steps, the proof by its name."""
    with ctx_host.use(host):
        return [
            "prove" if isinstance(command, FunctionCommand) else command.get_raw_value()
            for command in sshd.settled._inner(settings=settings)
        ]


def test_the_recorded_host_is_read_in_full() -> None:
    state = _recorded()
    assert ("passwordauthentication", "no") in state.effective
    assert ("modulifile", ssh.MODULI) in state.effective
    assert not state.is_outdated
    assert not state.is_unproved
    assert state.came_by == 22
    assert state.has_host_key
    assert state.has_strong_moduli
    assert state.passwordless == frozenset()
    assert state.homes == {"operator": Home("/home/operator", "operator")}


def test_a_file_newer_than_the_last_reload_is_noticed() -> None:
    lines = (RECORDED / "sshd.txt").read_text().splitlines()
    at = lines.index("#= files")
    newer = [*lines[: at + 1], "1999999999.000000", *lines[at + 1 :]]
    assert Sshd().process(newer).is_outdated


def test_a_broken_configuration_has_no_effective_settings() -> None:
    lines = (RECORDED / "sshd.txt").read_text().splitlines()
    state = Sshd().process([lines[0], *lines[lines.index("#= read") :]])
    assert state.effective == frozenset()


def test_a_converged_host_needs_no_command() -> None:
    settings = _settings()
    assert _plan(_converged(settings), settings) == []


def test_a_hand_edit_is_undone_between_a_net_and_a_proof() -> None:
    settings = _settings()
    host = _converged(settings)
    host.facts[PathStates][sshd.DROP_IN] = _file("PasswordAuthentication yes\n", "644", "root")
    arm, place, reload, prove = _plan(host, settings)
    assert "systemd-run" in arm
    assert "sshd -t" in place
    assert place.index("sshd -t") < place.index("mv -fT")
    assert "reload-or-restart ssh.service" in reload
    assert prove == "prove"


@pytest.mark.parametrize(
    "wrong",
    [
        {"is_outdated": True},
        {"is_unproved": True},
        {"effective": frozenset({("passwordauthentication", "yes")})},
    ],
)
def test_what_a_dead_run_left_behind_is_read_and_proved(wrong: dict[str, Any]) -> None:
    settings = _settings()
    host = _converged(settings)
    host.facts[Sshd] = replace(host.facts[Sshd], **wrong)
    _, reload, prove = _plan(host, settings)
    assert "reload-or-restart" in reload
    assert prove == "prove"


def test_a_changed_key_file_is_proved_too() -> None:
    settings = _settings()
    host = _converged(settings)
    del host.facts[PathStates]["/home/operator/.ssh/authorized_keys"]
    steps = _plan(host, settings)
    assert "/home/operator/.ssh/authorized_keys" in steps[1]
    assert KEY not in " ".join(steps)
    assert steps[-1] == "prove"


@pytest.mark.parametrize(
    ("wrong", "mend"),
    [
        ({"has_host_key": False}, "ssh-keygen -q -t ed25519"),
        ({"has_strong_moduli": False}, "awk '$5 >= 3071' /etc/ssh/moduli"),
        ({"passwordless": frozenset({"guest"})}, "usermod --password '*' guest"),
    ],
)
def test_materials_are_made_when_missing(wrong: dict[str, Any], mend: str) -> None:
    settings = _settings()
    host = _converged(settings)
    host.facts[Sshd] = replace(host.facts[Sshd], **wrong)
    (command,) = _plan(host, settings)
    assert mend in command


def test_root_may_log_in_only_where_the_inventory_says_so() -> None:
    assert ("PermitRootLogin", "no") in ssh.directives(_settings(), [22])
    by_key = _settings(root_login="key")
    assert ("PermitRootLogin", "prohibit-password") in ssh.directives(by_key, [22])
    assert ("permitrootlogin", "without-password") in ssh.in_force(by_key, [22])


@pytest.mark.parametrize(
    ("declared", "came_by", "expected"),
    [(22, 22, [22]), (22, None, [22]), (2222, 22, [22, 2222]), (2222, 2222, [2222])],
)
def test_a_moved_port_keeps_the_way_this_run_came_by(
    declared: int, came_by: int | None, expected: list[int]
) -> None:
    assert ssh.ports(_settings(port=declared), came_by) == expected


def test_paramiko_finds_a_common_set() -> None:
    """pyinfra's client has no post-quantum key exchange: with it alone we would lock it out."""
    import paramiko

    transport: Any = paramiko.Transport

    offered = dict(ssh.directives(_settings(), [22]))
    for keyword, known in (
        ("KexAlgorithms", transport._preferred_kex),
        ("Ciphers", transport._preferred_ciphers),
        ("MACs", transport._preferred_macs),
    ):
        assert set(offered[keyword].split(",")) & set(known), keyword
