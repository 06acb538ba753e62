"""sshd: the recorded host, the directives, and the order that keeps everybody able to log in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pyinfra.api import FunctionCommand, StringCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.context import ctx_host

from facts.host_files import PathState, PathStates
from facts.ssh import ROLLBACK_STATE, Sshd, SshState
from holdfast import ssh
from holdfast.connector import RackConnector
from holdfast.render import render
from holdfast.service.units import service_unit
from holdfast.settings import HostSettings
from operations import sshd
from tests.unit.local_host import LocalHost
from tests.unit.recorded_facts import read, recorded

KEYS = "/etc/holdfast/ssh/operator"
STANDARD_SCRIPT = ssh.ROLLBACK_SCRIPT
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
    state: SshState = read(Sshd)
    return state


def _converged(settings: HostSettings) -> LocalHost:
    state = replace(_recorded(), effective=frozenset(ssh.in_force(settings, [settings.ssh.port])))
    folder = PathState("directory", "755", "root", "root")
    return LocalHost(
        facts={
            Sshd: state,
            PathStates: {
                sshd.DROP_IN: _file(_drop_in(settings, "operator"), "644", "root"),
                "/etc/holdfast": folder,
                "/etc/holdfast/ssh": folder,
                KEYS: _file(f"{KEY}\n", "644", "root"),
            },
        }
    )


def _drop_in(settings: HostSettings, *keyed: str) -> str:
    return render(
        "ssh/sshd.conf.j2",
        directives=ssh.directives(settings, [settings.ssh.port]),
        keyed=list(keyed),
        key_file=ssh.KEY_FILE,
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
    assert state.keyed == {"operator": 94}
    assert state.key_files == {"operator": "/etc/holdfast/ssh/%u"}


def test_a_file_newer_than_the_last_reload_is_noticed() -> None:
    lines = recorded(Sshd)
    at = lines.index("#= files")
    newer = [*lines[: at + 1], "1999999999.000000", *lines[at + 1 :]]
    assert read(Sshd, newer).is_outdated


def test_a_broken_configuration_has_no_effective_settings() -> None:
    lines = recorded(Sshd)
    state = read(Sshd, [lines[0], *lines[lines.index("#= read") :]])
    assert state.effective == frozenset()


def test_a_converged_host_needs_no_command() -> None:
    settings = _settings()
    assert _plan(_converged(settings), settings) == []


def test_a_hand_edit_is_undone_between_a_net_and_a_proof() -> None:
    settings = _settings()
    host = _converged(settings)
    host.facts[PathStates][sshd.DROP_IN] = _file("PasswordAuthentication yes\n", "644", "root")
    arm, place, reload, prove = _plan(host, settings)
    assert arm.startswith(f"{ssh.ROLLBACK_SCRIPT} keep {KEYS} {sshd.DROP_IN} && ")
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
    del host.facts[PathStates][KEYS]
    steps = _plan(host, settings)
    assert KEYS in steps[0]
    assert KEYS in steps[1]
    assert KEY not in " ".join(steps)
    assert steps[-1] == "prove"


def test_keys_are_there_before_sshd_looks_for_them() -> None:
    settings = _settings()
    host = _converged(settings)
    host.facts[PathStates] = {}
    steps = _plan(host, settings)
    keys = next(at for at, step in enumerate(steps[1:], 1) if f"{KEYS}.holdfast-new" in step)
    drop_in = next(at for at, step in enumerate(steps[1:], 1) if "sshd -t" in step)
    reload = next(at for at, step in enumerate(steps) if at and "reload-or-restart" in step)
    assert keys < drop_in < reload < len(steps) - 1


def test_no_home_is_written_into() -> None:
    settings = _settings()
    host = _converged(settings)
    host.facts[PathStates] = {}
    assert not [step for step in _plan(host, settings) if "/home" in step or ".ssh/" in step]


def test_a_user_who_is_declared_no_more_keeps_the_file(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else sshd would look into that home again, where older keys may lie."""
    settings = _settings()
    host = _converged(settings)
    host.facts[Sshd] = replace(
        host.facts[Sshd],
        keyed={"operator": 94, "bob": 94, "eve": 0},
        key_files=dict.fromkeys(("operator", "bob", "eve"), ssh.KEY_FILE),
    )
    host.facts[PathStates][sshd.DROP_IN] = _file(
        _drop_in(settings, "bob", "eve", "operator"), "644", "root"
    )
    with caplog.at_level("WARNING"):
        assert _plan(host, settings) == []
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "bob" in told[0]
    assert "empty that file" in told[0]


def test_a_user_who_is_not_named_is_left_alone() -> None:
    settings = HostSettings.model_validate(
        {"hostname": "rack", "distribution": "debian13", "interfaces": {"eth1": {"role": "lan"}}}
    )
    assert ssh.keyed(settings, {}) == []
    assert "AuthorizedKeysFile" not in _drop_in(settings)


def test_another_place_of_keys_is_brought_back_and_proved() -> None:
    settings = _settings()
    host = _converged(settings)
    host.facts[Sshd] = replace(
        host.facts[Sshd], key_files={"operator": ".ssh/authorized_keys /etc/holdfast/ssh/%u"}
    )
    _, reload, prove = _plan(host, settings)
    assert "reload-or-restart" in reload
    assert prove == "prove"


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


_SYSTEMD_RUN = """#!/bin/sh
while [ "$#" -gt 0 ]; do
    case $1 in
    --on-active=*) seconds=${{1#*=}} ;;
    --unit=*) unit=${{1#*=}} ;;
    esac
    shift
done
[ ! -e {0}/timer ] || exit 1
echo "$unit" > {0}/timer
echo "$seconds" > {0}/seconds
"""
_SYSTEMCTL = """#!/bin/sh
case "$*" in
"is-active --quiet ssh.socket" | "is-enabled --quiet ssh.socket") exit 1 ;;
"stop holdfast-ssh-rollback.timer") rm {0}/timer ;;
*"reload-or-restart ssh.service") ulimit -S -f unlimited; cp {0}/00-holdfast.conf {0}/in-force ;;
esac
"""
_SSHD = """#!/bin/sh
cat {0}/in-force
"""


@dataclass
class Armed(LocalHost):
    """This machine with an sshd that reads one drop-in, and timers that wait for the test."""

    folder: Path = Path()
    connector: Any = None
    data: dict[str, Any] = field(default_factory=dict)
    room: str = "unlimited"
    """How much a command of the unit may write to a file, in blocks of 512 bytes."""

    def __post_init__(self) -> None:
        self.programs = self.folder / "bin"
        self.programs.mkdir()
        script = ssh.rollback_script().replace(ROLLBACK_STATE, str(self.kept))
        for name, text in {
            "systemd-run": _SYSTEMD_RUN,
            "systemctl": _SYSTEMCTL,
            "sshd": _SSHD,
        }.items():
            self._program(name, text.format(self.folder))
        self._program("ssh-rollback", script.replace("/etc/ssh", str(self.folder)))
        self.write("old")
        self.sh("systemctl reload-or-restart ssh.service")

    def _program(self, name: str, text: str) -> None:
        assert self.programs is not None
        program = self.programs / name
        program.write_text(text)
        program.chmod(0o755)

    @property
    def kept(self) -> Path:
        """Where the proved files are kept meanwhile."""
        return self.folder / "kept"

    @property
    def drop_in(self) -> Path:
        return self.folder / "00-holdfast.conf"

    @property
    def keys(self) -> Path:
        return self.folder / "authorized_keys"

    @property
    def new(self) -> Path:
        """A file that was not there before the change."""
        return self.folder / "its keys"

    def write(self, text: str) -> None:
        self.drop_in.write_text(f"{text} directive\n")
        self.keys.write_text(f"{text} key\n")
        self.keys.chmod(0o600)

    def sh(self, command: str) -> None:
        done = self._run(command)
        assert done.returncode == 0, done.stderr

    def change(self, text: str) -> None:
        """What the operation does up to its proof."""
        self.sh(sshd._arm([str(each) for each in (self.drop_in, self.keys, self.new)], 90))
        self.write(text)
        self.keys.chmod(0o644)
        self.new.write_text("a stranger's key\n")
        self.sh(sshd._RELOAD)

    def run_shell_command(self, command: StringCommand, **_: Any) -> tuple[bool, Any]:
        done = self._run(command.get_raw_value())
        output = SimpleNamespace(stdout_lines=done.stdout.splitlines(), stderr=done.stderr)
        return done.returncode == 0, output

    def prove(self, *wanted: tuple[str, str]) -> bool:
        self.facts[Sshd] = _recorded()
        return sshd._prove(cast(State, None), cast(Host, self), _settings(), set(wanted), [])

    def run_out(self) -> None:
        """The deadline passes."""
        timer = self.folder / "timer"
        assert timer.read_text().strip() == ssh.ROLLBACK_UNIT
        timer.unlink()
        self._start_unit()

    def boot(self) -> None:
        """After a power cut: no timer is left, and sshd starts after the unit of the rollback."""
        (self.folder / "timer").unlink(missing_ok=True)
        self._start_unit()
        self.sh("systemctl reload-or-restart ssh.service")

    def _start_unit(self) -> None:
        lines = [line.partition("=")[::2] for line in service_unit(ssh.rollback()).splitlines()]
        said = {name: value for name, value in lines if not name.startswith("#")}
        condition = said["ConditionPathExists"].replace(ROLLBACK_STATE, str(self.kept))
        assert {"ssh.service", "ssh.socket"} <= {*said["Before"].split()}
        if Path(condition).exists():
            command = said["ExecStart"].replace(STANDARD_SCRIPT, ssh.ROLLBACK_SCRIPT)
            self.sh(f"ulimit -S -f {self.room}; {command}")

    @property
    def is_as_before(self) -> bool:
        return (
            self.drop_in.read_text() == "old directive\n" == (self.folder / "in-force").read_text()
            and self.keys.read_text() == "old key\n"
            and self.keys.stat().st_mode & 0o777 == 0o600
            and not self.new.exists()
        )


@pytest.fixture
def armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Armed:
    monkeypatch.setattr(ssh, "ROLLBACK_SCRIPT", str(tmp_path / "bin" / "ssh-rollback"))
    return Armed(folder=tmp_path)


def test_what_no_login_proves_is_undone_by_the_timer(armed: Armed) -> None:
    armed.change("new")
    assert not armed.is_as_before
    assert armed.kept.stat().st_mode & 0o077 == 0
    assert (armed.folder / "seconds").read_text().strip() == "90"
    armed.run_out()
    assert armed.is_as_before


def test_what_no_login_proves_is_undone_by_the_next_boot(armed: Armed) -> None:
    armed.change("new")
    armed.boot()
    assert armed.is_as_before
    armed.write("edited")
    armed.boot()
    assert armed.drop_in.read_text() == "edited directive\n", "it was undone twice"


def test_a_copy_that_a_power_cut_left_half_made_is_made_again(armed: Armed) -> None:
    half = armed.drop_in.with_name(".00-holdfast.conf.kept")
    half.write_text("half a dir")
    armed.kept.mkdir()
    (armed.kept / "kept").write_text(f"{armed.drop_in}\n")
    armed.change("new")
    armed.boot()
    assert armed.is_as_before


def test_a_way_back_that_fails_is_tried_again_at_boot(armed: Armed) -> None:
    armed.change("new")
    armed.drop_in.unlink()
    armed.drop_in.mkdir()
    with pytest.raises(AssertionError):
        armed.run_out()
    armed.drop_in.rmdir()
    armed.boot()
    assert armed.is_as_before


def test_a_full_disk_does_not_hold_up_the_way_back(armed: Armed) -> None:
    armed.change("new")
    armed.room = "0"
    armed.run_out()
    armed.room = "unlimited"
    assert armed.is_as_before


def test_a_second_change_before_a_proof_is_undone_to_what_was_proved(armed: Armed) -> None:
    armed.change("new")
    armed.change("newer")
    armed.run_out()
    assert armed.is_as_before


def test_a_second_change_of_other_files_is_undone_with_the_first(armed: Armed) -> None:
    armed.change("new")
    other = armed.folder / "another's keys"
    armed.sh(sshd._arm([str(other)], 90))
    other.write_text("another key\n")
    armed.boot()
    assert armed.is_as_before
    assert not other.exists()


def test_what_was_proved_stays(armed: Armed) -> None:
    armed.change("new")
    assert armed.prove(("new", "directive"))
    assert not (armed.folder / "timer").exists()
    assert not armed.kept.exists()
    assert not [*armed.folder.glob("*.kept")], "a copy of keys was left behind"
    armed.boot()
    assert armed.drop_in.read_text() == "new directive\n"


def test_a_proof_that_comes_too_late_is_none(
    armed: Armed, caplog: pytest.LogCaptureFixture
) -> None:
    armed.change("old")
    armed.run_out()
    assert not armed.prove(("old", "directive"))
    assert "the confirming login came after the deadline" in caplog.text.lower()


def test_what_sshd_does_not_obey_is_undone_at_once(armed: Armed) -> None:
    armed.change("new")
    assert not armed.prove(("newer", "directive"))
    assert armed.is_as_before
    assert not (armed.folder / "timer").exists()


def test_a_login_that_fails_undoes_the_change_at_once(
    armed: Armed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def new_login(self: RackConnector, path: str | None = None) -> None:
        raise ConnectError("a new login failed")

    monkeypatch.setattr(RackConnector, "new_login", new_login)
    armed.connector = RackConnector.__new__(RackConnector)
    armed.change("new")
    assert not armed.prove(("new", "directive"))
    assert armed.is_as_before
