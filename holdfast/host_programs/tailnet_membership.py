#!/usr/bin/python3 -I
"""Watch a host's membership of its tailnet, and open SSH on the LAN when it is lost.

It is copied to hosts, so it uses only the standard library of Python 3.11. A timer starts it every
minute. After the declared minutes without membership it opens SSH on the LAN with the rules that
the deploy withdrew; after the same time as a member it removes them. It exits 1 with a sentence,
which raises an alert, when membership is lost for that long, and once a day while the node key ends
within the declared days.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

CONFIG = "/etc/holdfast/tailnet-membership.json"
STATE = "/run/holdfast/tailnet-membership/state.json"
RULES = ("/etc/ufw/user.rules", "/etc/ufw/user6.rules")
"""ufw's files with its rules, each below a line that starts with `TUPLE`."""
TUPLE = "### tuple ### "
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
ANSWER_SECONDS = 20
PING_SECONDS = 3
PEERS = 8
"""The highest number of peers to ping."""
ASKS = 3
"""Number of pings in the time after which a membership counts as lost."""
PHONES = ("iOS", "android")
UFW_SECONDS = 60
DAY_SECONDS = 24 * 3600


@dataclass
class Seen:
    """The record of the last check.

    Times are seconds since the boot. ``since`` is when the host became a member, or stopped being
    one. ``alerted``: the alert of this loss was raised. ``warned`` is when the end of the key was
    reported last, and ``heard`` when a ping of peers last confirmed the membership.
    """

    member: bool
    since: float
    alerted: bool = False
    warned: float | None = None
    heard: float | None = None


class UfwError(Exception):
    """A command of ufw failed."""


def status() -> dict[str, Any] | None:
    """tailscaled's status of this host; None if it does not answer."""
    try:
        said = json.loads(tailscale("status", "--json").stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
    return said if isinstance(said, dict) else None


def tailscale(*words: str) -> subprocess.CompletedProcess[str]:
    """The output of a command of tailscale."""
    return subprocess.run(
        ["tailscale", *words],
        capture_output=True,
        env=ENVIRONMENT,
        encoding="utf-8",
        errors="replace",
        timeout=ANSWER_SECONDS,
        check=False,
    )


def absence(said: dict[str, Any] | None) -> str | None:
    """Why this host is not a member of its tailnet; None if it is."""
    if said is None:
        return "tailscaled does not answer"
    me = said.get("Self") or {}
    if me.get("Expired"):
        return "its node key has expired"
    backend = said.get("BackendState") or "no state"
    if backend != "Running":
        health = " ".join(str(line) for line in said.get("Health") or [])
        return f"tailscaled is in {backend}" + (f": {' '.join(health.split())}" if health else "")
    return None if me.get("Online") else "its control server does not see it online"


def answers(address: str) -> bool | None:
    """Whether a peer answers a ping; None if unknown."""
    wait = f"--timeout={PING_SECONDS}s"
    try:
        done = tailscale("ping", "--c=1", "--until-direct=false", wait, address)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode == 0:
        return True
    return False if "timed out" in done.stdout + done.stderr else None


def unheard(said: dict[str, Any] | None) -> bool:
    """Whether peers are online and none of them answers this host.

    headscale does not notify a deleted node: until tailscaled restarts, its status is that of an
    online member, although its peers have removed it.
    """
    peers = ((said or {}).get("Peer") or {}).values()
    asked = [
        peer["TailscaleIPs"][0]
        for peer in peers
        # A ping would wake a phone.
        if peer.get("Online") and peer.get("TailscaleIPs") and peer.get("OS") not in PHONES
    ]
    silent = False
    for address in asked[:PEERS]:
        answer = answers(address)
        if answer:
            return False
        silent = silent or answer is False
    return silent


def expiry(said: dict[str, Any] | None) -> datetime | None:
    """When the node key ends; None if it has no expiry."""
    text = ((said or {}).get("Self") or {}).get("KeyExpiry")
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    # A control server may write "never" as the year 1.
    if found is None or found.tzinfo is None or found.year < 1970:
        return None
    return found


def present() -> set[str]:
    """ufw's rules, from its files."""
    return {
        line.removeprefix(TUPLE)
        for path in RULES
        if Path(path).exists()
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
        if line.startswith(TUPLE)
    }


def ufw(command: list[str]) -> None:
    """Run one command of ufw.

    Raises:
        UfwError: it failed, or it takes too long.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            env=ENVIRONMENT,
            encoding="utf-8",
            errors="replace",
            timeout=UFW_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UfwError(str(error)) from error
    if done.returncode != 0:
        raise UfwError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")


def let_in(rules: list[dict[str, Any]]) -> bool:
    """Add missing rules, regardless of comments; True if there were any."""
    there = {rule.partition(" comment=")[0] for rule in present()}
    missing = [rule for rule in rules if rule["rule"].partition(" comment=")[0] not in there]
    for rule in missing:
        ufw(rule["open"])
    return bool(missing)


def shut_out(rules: list[dict[str, Any]]) -> bool:
    """Remove the rules that this program added; True if there were any."""
    there = present()
    extra = [rule for rule in rules if rule["rule"] in there]
    for rule in extra:
        ufw(rule["close"])
    return bool(extra)


def ending(said: dict[str, Any] | None, days: int, seen: Seen, now: float) -> str | None:
    """The warning for a node key that ends within ``days``; at most once a day."""
    end = expiry(said)
    if end is None or end - datetime.now(UTC) > timedelta(days=days):
        seen.warned = None
        return None
    if seen.warned is not None and now - seen.warned < DAY_SECONDS:
        return None
    seen.warned = now
    ends = "ends" if end > datetime.now(UTC) else "ended"
    return (
        f"the node key of this host {ends} on {end:%Y-%m-%d %H:%M} UTC, and without it the"
        " host leaves the tailnet: renew the key, or disable its expiry at the control server"
    )


def look(config: dict[str, Any], seen: Seen | None, now: float) -> tuple[Seen, list[str]]:
    """Check once; return the new record, and a sentence for each alert."""
    said = status()
    minutes, rules = config["lost_minutes"], config["rules"]
    seen = seen or Seen(member=False, since=now)
    reason = absence(said)
    if reason is None and (seen.heard is None or now - seen.heard >= minutes * 60 / ASKS):
        if unheard(said):
            reason = "no online peer answers it"
        else:
            seen.heard = now
    member = reason is None
    if seen.member != member:
        seen = Seen(member, since=now, warned=seen.warned, heard=seen.heard)
    lasted = now - seen.since >= minutes * 60
    alerts = []
    if warning := ending(said, config["key_warning_days"], seen, now):
        alerts.append(warning)
    try:
        if member and lasted and shut_out(rules):
            say(5, f"a member of the tailnet for {minutes} minutes: SSH is closed on the LAN again")
        if not member and lasted and (let_in(rules) or not seen.alerted):
            door = ": SSH is open on the LAN" if rules else ""
            alerts.append(f"not a member of the tailnet for {minutes} minutes ({reason}){door}")
            if not seen.alerted and absence(said) is None:
                restart()
            seen.alerted = True
    except UfwError as error:
        alerts.append(f"SSH on the LAN cannot be changed: {error}")
    return seen, alerts


def restart() -> None:
    """Restart tailscaled: it then asks its control server whether it is a member."""
    command = ["systemctl", "--no-block", "restart", "tailscaled.service"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, env=ENVIRONMENT, timeout=ANSWER_SECONDS, check=False)


def say(priority: int, sentence: str) -> None:
    """Write a sentence to the journal."""
    print(f"<{priority}>{sentence}", file=sys.stderr)  # noqa: T201


def read(state: Path) -> Seen | None:
    """The record of the last check; None if it cannot be read."""
    try:
        return Seen(**json.loads(state.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def main() -> int:
    """Check once; the exit status is 1 if there is an alert."""
    config = json.loads(Path(CONFIG).read_text(encoding="utf-8"))
    state = Path(STATE)
    seen, alerts = look(config, read(state), time.clock_gettime(time.CLOCK_BOOTTIME))
    state.write_text(json.dumps(asdict(seen)), encoding="utf-8")
    for sentence in alerts:
        say(3, sentence)
    return 1 if alerts else 0


if __name__ == "__main__":
    sys.exit(main())
