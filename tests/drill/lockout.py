"""Rehearsed lock-outs: changes that lock the operator out undo themselves, and say so."""

from __future__ import annotations

import dataclasses
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from facts import ssh
from facts.firewall import PROGRAM, ROLLBACK_STATE
from holdfast.firewall import MARK, TIMER, UNTIL_TAILNET, WATCH
from holdfast.settings import HostSettings
from holdfast.ssh import ROLLBACK_UNIT
from tests.drill.converge import start
from tests.drill.rehearsal import Act
from tests.drill.sabotages import KEY_ENDS
from tests.drill.site import Site
from tests.lab.machine import Machine
from tests.lab.process import output_of

WITHDRAW = "tests/drill/withdraw_site.py"
"""The part of the site that closes SSH on the LAN."""
RULES = "iptables-save | grep ^-A; ip6tables-save | grep ^-A; cat /etc/ufw/user.rules"
MISTAKE = "mistake"
"""The name of another operator's key."""
OPEN_LAN_SSH = (
    f"ufw allow proto tcp from any to any port 22 comment '{MARK} {UNTIL_TAILNET}'"
    # As after a confirmed change; otherwise the watch of the firewall would report it.
    f" && {PROGRAM} keep && {PROGRAM} disarm"
)
LAN_SSH_IS_OPEN = f"ufw status | grep --quiet '{UNTIL_TAILNET}'"
TAILNET = "100.64.0.0/10,fd7a:115c:a1e0::/48"
STRAY = "/etc/ssh/sshd_config.d/00-aaa-stray.conf"


class Stage(Protocol):
    """The stage that a rehearsal needs."""

    @property
    def rack(self) -> Machine:
        """The machine."""

    @property
    def settings(self) -> HostSettings:
        """The settings of the rack."""

    def inventory_data(self) -> dict[str, Any]:
        """The inventory's data."""

    def declared(self, **changes: object) -> AbstractContextManager[None]:
        """Change the inventory during the block."""


def acts(tried: Callable[[], LockOut]) -> Sequence[Act]:
    """All rehearsals."""
    return (
        Act("lock the operator out by the firewall", lambda: tried().firewall(), rows=(6,)),
        Act("lock the operator out by SSH", lambda: tried().ssh(), rows=(6,)),
        Act("withdraw SSH from the LAN in vain", lambda: tried().tailnet(), rows=(8,)),
    )


class LockOut:
    """Every path into one rack, lost and restored."""

    def __init__(self, stage: Stage, site: Site) -> None:
        self.stage, self.site, self.record = stage, site, site.record

    @property
    def rack(self) -> Machine:
        """The machine."""
        return self.stage.rack

    def firewall(self) -> None:
        """Declare a firewall that accepts no login; its timer restores the previous one."""
        data = self.stage.inventory_data()
        self.rack.succeed(OPEN_LAN_SSH)
        before = self.rack.succeed(RULES)
        # The operator logs in over the LAN, from a network that the inventory does not list.
        began = time.monotonic()
        with self.stage.declared(
            ssh_hostname="rack-lan",
            ssh=data["ssh"] | {"lan_access": "keep", "lan_sources": ["192.0.2.0/24"]},
        ):
            outcome = self.site.deploy("a firewall without a way in")
        log = outcome.log.read_text()
        told = "the host restores its previous firewall within" in log
        self.record.check(
            "a deploy that would lock the operator out fails", not outcome.ok and told
        )
        shut = self.rack.execute(f"test -e {ROLLBACK_STATE}/armed")[0] == 0
        self.record.check("and its timer runs while no login succeeds", shut)
        self.rack.wait_until_succeeds(f"test ! -e {ROLLBACK_STATE}/armed", timeout_seconds=120)
        took = f"{time.monotonic() - began:.0f} s"
        after = self.rack.succeed(RULES)
        fault, state = "a firewall that shuts the operator out", "the former rules are back"
        self.record.survived(fault, state, after == before, took)
        self._expect_login("the firewall's rollback")

    def ssh(self) -> None:
        """Declare another operator's key, and lose the controller in the middle."""
        data = self.stage.inventory_data()
        user = data["ssh_user"]
        keys = self.rack.succeed(self._keys(user))
        declared = data["ssh"] | {"authorised_keys": {user: [self._key_of_another()]}}
        with self.stage.declared(ssh=declared):
            run = start(self.site.inventory, self.site.logs / "converge-another-key.log")
            try:
                # Killed before it can confirm or undo anything itself.
                self.rack.succeed(f"until {self._keys(user)} | grep -q {MISTAKE}; do :; done", 120)
            finally:
                run.kill()
                run.wait()
        deadline = ROLLBACK_UNIT.replace(".service", ".timer")
        armed = self.rack.execute(f"systemctl is-active {deadline}")[0] == 0
        self.record.check("a killed deploy leaves SSH's timer running", armed)
        self.rack.wait_until_succeeds(f"test ! -e {ssh.ROLLBACK_STATE}/armed", timeout_seconds=180)
        told = self.rack.execute(
            f"journalctl --boot --unit={ROLLBACK_UNIT} --output=cat | grep 'former configuration'"
        )[1]
        back = self.rack.succeed(self._keys(user)) == keys
        fault, state = "a deploy of SSH that dies", "the former keys are back"
        self.record.survived(fault, state, back, told.strip())
        self._expect_login("the rollback of SSH")

    def tailnet(self) -> None:
        """Try to close SSH on the LAN while the tailnet carries no login, in every way."""
        rack = self.rack
        withdrawal = dataclasses.replace(self.site, deploy_file=WITHDRAW)
        # As before the first confirmation: SSH is open on the LAN.
        rack.succeed(OPEN_LAN_SSH)
        for way, (hurt, heal) in self._ways().items():
            rack.succeed(hurt, timeout_seconds=120)
            try:
                outcome = withdrawal.deploy(f"withdraw while {way}")
                kept = rack.execute(LAN_SSH_IS_OPEN)[0] == 0
                last = outcome.log.read_text().strip().splitlines()[-1]
                good = not outcome.ok and kept
                self.record.survived(way, "SSH stays open on the LAN", good, last)
            finally:
                rack.succeed(heal, timeout_seconds=120)
        rack.wait_until_succeeds("tailscale status --peers=false", timeout_seconds=60)
        withdrawal.converge("withdraw while the tailnet carries a login")
        shut = rack.execute(LAN_SSH_IS_OPEN)[0] != 0
        self.record.check("once the tailnet carries a login, SSH on the LAN is closed", shut)

    def _ways(self) -> dict[str, tuple[str, str]]:
        """Ways in which a tailnet carries no login, each with the command that undoes it."""

        def told(line: str) -> tuple[str, str]:
            text = shlex.quote(f"Match LocalAddress {TAILNET}\n    {line}\n")
            return (
                f"printf {text} > {STRAY} && systemctl reload ssh",
                f"rm {STRAY} && systemctl reload ssh",
            )

        def dropped(verb: str) -> str:
            rule = f"{verb} INPUT -i tailscale0 -p tcp --dport 22 -j DROP"
            return f"iptables {rule} && ip6tables {rule}"

        return {
            "tailscaled is stopped": ("systemctl stop tailscaled", "systemctl start tailscaled"),
            "no user may log in over the tailnet": told("DenyUsers *"),
            "a login over the tailnet runs no command": told("ForceCommand false"),
            # The watch of the firewall would open it.
            "the port of SSH is shut on the tailnet": (
                f"systemctl stop {TIMER} {WATCH} && {dropped('-I')}",
                f"{dropped('-D')} && systemctl start {TIMER}",
            ),
            "its node key ends": KEY_ENDS,
        }

    def _key_of_another(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / MISTAKE
            maker = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", MISTAKE, "-f"]
            output_of([*maker, file])
            return file.with_suffix(".pub").read_text().strip()

    def _keys(self, user: str) -> str:
        """A command that prints the keys which open an account."""
        files = "sshd -T -C user={0} | sed -n 's/^authorizedkeysfile //p'"
        home = f"$(getent passwd {user} | cut -d: -f6)"
        return (
            f"{{ for file in $({files.format(user)}); do file=$(echo $file | sed 's/%u/{user}/');"
            f" case $file in /*) ;; *) file={home}/$file;; esac;"
            " cat $file 2>/dev/null; done; true; }"
        )

    def _expect_login(self, after: str) -> None:
        """The operator's next deploy logs in, and restores the declared state."""
        outcome = self.site.converge(f"after {after}")
        self.record.check(f"a login works after {after}", outcome.ok)
