#!/usr/bin/python3 -I
"""Undo a firewall change that no login confirms, and keep the confirmed firewall in force.

It is copied to hosts, so it uses only the standard library of Python 3.11.

``keep`` saves the present firewall before a change, ``arm SECONDS`` sets a deadline for the change,
and ``disarm`` confirms it after a login; ``watch`` then enforces the confirmed rules. ``restore``
undoes a change: at its deadline, at the next boot after a power cut, or by hand. ``load`` loads
ufw's files again without an open moment, which ufw itself would have. ``watch`` exits 1 with a
sentence if the firewall in force is not the confirmed one; it enables ufw and loads its files
again. ``proved`` exits 0 if it is the confirmed one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UFW = "/etc/ufw"
DEFAULTS = "/etc/default/ufw"
CONF = "/etc/ufw/ufw.conf"
UFW_INIT = "/lib/ufw/ufw-init"
UFW_LOCK = "/run/ufw.lock"
"""The lock of ufw's own command."""
STATE = "/var/lib/holdfast/firewall"
"""Whether a change waits for a confirming login, and the rules that were confirmed last."""
RUN = "/run/holdfast/firewall"
MEMBERSHIP = "/etc/holdfast/tailnet-membership.json"
"""The rules that the tailnet's watch may add, and their form in the kernel."""
DOCKER_USER = "/usr/local/lib/holdfast/docker-user"
DOCKER = ("/usr/bin/dockerd", "/usr/sbin/dockerd")
"""The path of the engine in Docker's own package, and in Debian's."""
IPV6 = "/proc/net/if_inet6"
ROLLBACK = "holdfast-firewall-rollback"
CHAINS = ("DOCKER-USER", "HOLDFAST-FORWARD")
"""Our own chains. Every chain of ufw's begins with its name."""
FORGOTTEN_SECONDS = 300
"""Limit for a change without a deadline: its preparation takes seconds."""
SETTLE_SECONDS = 3
"""Limit for a starting Docker to restore the jump that it removed."""

_FIRST = re.compile(
    "ufw6?-(before-logging|before|after|after-logging|reject|track)-(input|output|forward)"
)
"""The chains of ufw that built-in chains jump to."""

# It expires in case this program is killed: a permanent guard would lock the operator out.
# An emulated machine needs half a minute to load ufw's files.
_SWAP = """
table inet holdfast_swap {}
delete table inet holdfast_swap
table inet holdfast_swap {
    set held {
        type nf_proto
        flags timeout
        elements = { ipv4 timeout 2m, ipv6 timeout 2m }
    }
    chain known {
        meta nfproto != @held accept
        iifname "lo" accept
        ct state established,related accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
        drop
    }
    chain input {
        type filter hook input priority filter - 20; policy accept;
        jump known
    }
    chain forward {
        type filter hook forward priority filter - 20; policy accept;
        jump known
    }
}
"""


def _run(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise OSError(f"{command[0]} failed: {said or done.returncode}")
    return done.stdout


@contextmanager
def _alone() -> Iterator[None]:
    """Allow one change at a time, also by ufw's own command, which locks the same file.

    A stop of this program, or the end of its login, takes effect only after the change, because an
    incomplete firewall protects nothing.
    """
    with Path(UFW_LOCK).open("w", encoding="utf-8") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        # Ignored, not blocked: ufw's shell does not inherit a block.
        for ending in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(ending, signal.SIG_IGN)
        yield


@contextmanager
def _shut() -> Iterator[None]:
    """Refuse new connections during the block; existing ones continue."""
    try:
        _run("/usr/sbin/nft", "--file", "-", text=_SWAP)
    except OSError as error:
        # The rollback must not depend on it.
        _say(4, f"the firewall is being loaded without its guard: {error}")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            _run("/usr/sbin/nft", "delete", "table", "inet", "holdfast_swap")


def _start() -> None:
    _run(UFW_INIT, "start")
    if any(Path(engine).exists() for engine in DOCKER):
        _run(DOCKER_USER)


@contextmanager
def _stopped() -> Iterator[None]:
    """Take ufw's rules out of force; at the end load its files, also after a failed step."""
    with _shut():
        try:
            _run(UFW_INIT, "force-stop")
            yield
        finally:
            _start()


def _is_held(line: str) -> bool:
    """Whether a line of ``iptables -S`` must stay as confirmed.

    Docker, Tailscale and libvirt add jumps to their own chains to the built-in ones.
    """
    option, chain, *rule = line.split()
    target = rule[rule.index("-j") + 1] if "-j" in rule else ""
    if option == "-P" or chain.startswith("ufw") or chain in CHAINS:
        return True
    if chain == "INPUT":
        return target.startswith("ufw") or target in ("ACCEPT", "DROP", "REJECT", "RETURN")
    return target.startswith("ufw") or target in CHAINS or line == "-A FORWARD -j ACCEPT"


def _families() -> list[str]:
    return ["iptables", *(["ip6tables"] if Path(IPV6).exists() else [])]


def _list(tables: str, table: str) -> list[str]:
    return _run(f"/usr/sbin/{tables}", "--wait", "-t", table, "-S").splitlines()


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _returned() -> set[str]:
    """The rules in force that open SSH on the LAN while the tailnet is lost."""
    try:
        rules = json.loads(_read(MEMBERSHIP) or '{"rules": []}')["rules"]
    except (ValueError, KeyError, TypeError):
        return set()
    there = _read(f"{UFW}/user.rules") + _read(f"{UFW}/user6.rules")
    return {rule["live"] for rule in rules if f"### tuple ### {rule['rule']}\n" in there}


def listing() -> str:
    """The state that must stay as confirmed: ufw is enabled at boot, and the rules, by chain."""
    found = re.findall(r"(?m)^ENABLED=.*\n", _read(CONF))
    returned = _returned()
    for tables in _families():
        for table in ("filter", "mangle"):
            held = filter(_is_held, _list(tables, table))
            # The order of the chains does not matter.
            ordered = sorted(held, key=lambda line: line.split()[1])
            named = [f"{tables} -t {table} {line}" for line in ordered]
            found += [f"{line}\n" for line in named if line not in returned]
    return "".join(found)


def _write(path: str, text: str) -> None:
    """Write a complete file to disk before it gets its name."""
    new = Path(f"{path}.new")
    new.parent.mkdir(parents=True, exist_ok=True)
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if Path(path).exists():
        shutil.copymode(path, new)
    new.replace(path)


def _armed() -> Path:
    return Path(STATE, "armed")


def _copy_of(file: Path) -> Path:
    """The path of a file's copy: in the same folder, so that a full disk cannot prevent its return.

    In a sandbox each writable folder is a separate mount, and a rename between mounts fails.
    """
    return file.with_name(f".{file.name}.kept")


def _copies() -> dict[Path, Path]:
    """Each saved file, and its copy."""
    folders = [
        Path(DEFAULTS).parent.glob(f".{Path(DEFAULTS).name}.kept"),
        Path(UFW).glob(".*.kept"),
    ]
    return {copy.with_name(copy.name[1:-5]): copy for folder in folders for copy in folder}


def _forget() -> None:
    for copy in _copies().values():
        copy.unlink()


def _sync() -> None:
    _run("/bin/sync", "-f", STATE, UFW, str(Path(DEFAULTS).parent))


def _end_deadline() -> None:
    with contextlib.suppress(OSError):
        _run("systemctl", "stop", f"{ROLLBACK}.timer")


def keep() -> None:
    """Save the present firewall, unless a confirmed one is saved already."""
    _end_deadline()
    # The last confirmed firewall stays saved: a second unconfirmed change does not replace it.
    if _armed().exists():
        return
    Path(STATE).mkdir(mode=0o700, parents=True, exist_ok=True)
    _forget()
    for file in [Path(DEFAULTS), *filter(Path.is_file, Path(UFW).iterdir())]:
        shutil.copy2(file, _copy_of(file))
    _sync()
    _armed().touch()
    _sync()


def arm(seconds: str) -> None:
    """Undo the change after ``seconds``."""
    _run(
        *("systemd-run", "--quiet", "--collect", f"--unit={ROLLBACK}.service"),
        *(f"--on-active={seconds}", "--timer-property=AccuracySec=1s"),
    )


def disarm() -> None:
    """Keep the change, and record the rules in force as confirmed.

    Raises:
        OSError: the change was undone before.
    """
    if not _armed().exists():
        raise OSError(
            "The confirming login came after the deadline: the previous firewall is back in"
            " force. Deploy again."
        )
    _write(f"{STATE}/proved", listing())
    _armed().unlink()
    # Without this a power cut could restore the mark, and a boot would undo a confirmed change.
    _sync()
    _forget()
    _end_deadline()


def restore() -> None:
    """Restore the saved firewall, if a change waits for its confirming login."""
    if not _armed().exists():
        return
    _say(4, "No login confirmed the last firewall change in time: restoring the previous firewall.")
    with _stopped():
        for file, copy in _copies().items():
            copy.replace(file)
    _armed().unlink()


def _begin_again() -> None:
    """Remove ufw's chains if no built-in chain jumps to one of them.

    ufw adds the jumps only when it creates the chains, and it keeps existing chains.
    """
    for tables in _families():
        lines = _list(tables, "filter")
        chains = [line.split()[1] for line in lines if line.startswith("-N ufw")]
        hooks = [line for line in lines if re.match(r"-A (INPUT|OUTPUT|FORWARD) -j ufw\S*$", line)]
        hooked = {line.split()[-1] for line in hooks}
        if any(_FIRST.fullmatch(chain) and chain not in hooked for chain in chains):
            new = [line.replace("-A", "-D", 1) for line in hooks]
            new += [f"-F {chain}" for chain in chains] + [f"-X {chain}" for chain in chains]
            text = "\n".join(["*filter", *new, "COMMIT", ""])
            _run(f"/usr/sbin/{tables}-restore", "--wait", "--noflush", text=text)


def load() -> None:
    """Load ufw's files again, without an open moment."""
    with _stopped():
        _begin_again()


def _unproved() -> Iterator[str]:
    """The error of an unconfirmed change without a deadline."""
    with contextlib.suppress(OSError):
        _run("systemctl", "--quiet", "is-active", f"{ROLLBACK}.timer")
        return
    seconds = time.time() - _armed().stat().st_mtime
    if seconds > FORGOTTEN_SECONDS:
        yield (
            f"a firewall change has waited {seconds // 60:.0f} minutes for a confirming login,"
            " without a deadline: deploy to this host again"
        )


def _differences(proved: str, found: str) -> str:
    """The first missing and new rules, in readable form."""
    was, now = proved.splitlines(), found.splitlines()
    gone = [f"gone: {line}" for line in was if line not in now]
    new = [f"new: {line}" for line in now if line not in was]
    told = [*gone[:3], *new[:3]] or ["its rules are in another order"]
    more = len(gone) + len(new) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


def _take_out(proved: str, found: str) -> None:
    """Remove rules that a hand added to the built-in chains; loading keeps those."""
    for line in found.splitlines():
        if line not in proved.splitlines() and re.search(r" -A (INPUT|FORWARD) ", line):
            tables, *rule = shlex.split(line.replace(" -A ", " -D ", 1))
            _run(f"/usr/sbin/{tables}", "--wait", *rule)


def _switch_on() -> bool:
    """Enable ufw; return whether it was disabled."""
    text = _read(CONF)
    on = re.sub(r"(?m)^ENABLED=.*$", "ENABLED=yes", text)
    if on == text:
        return False
    _write(CONF, on)
    return True


def watch() -> Iterator[str]:
    """The errors of the firewall in force; it repairs what it can."""
    if _armed().exists():
        yield from _unproved()
        return
    proved = _read(f"{STATE}/proved")
    if not proved:
        yield "no login has confirmed the firewall of this host: deploy to it"
        return
    found = listing()
    if found != proved:
        time.sleep(SETTLE_SECONDS)
        found = listing()
    if found == proved:
        return
    what = _differences(proved, found)
    left = f"{RUN}/left"
    # If loading did not repair it the last time, it does not repair it now.
    if found != _read(left):
        if _switch_on():
            what = f"ufw was disabled ({what})"
        load()
        _take_out(proved, found)
        found = listing()
        _write(left, found)
    if found == proved:
        yield f"the firewall was changed by hand, and has been restored: {what}"
    else:
        yield (
            "neither the firewall in force nor ufw's files are those that a login confirmed:"
            f" {_differences(proved, found)}. Deploy to this host again"
        )


def _say(level: int, line: str) -> None:
    prefix = f"<{level}>" if "JOURNAL_STREAM" in os.environ else ""
    print(f"{prefix}{line}", file=sys.stderr)  # noqa: T201


_VERBS = {"keep": keep, "disarm": disarm, "restore": restore, "load": load}


def _do(verb: str, words: tuple[str, ...]) -> int:
    if verb == "arm" and len(words) == 1:
        arm(*words)
    elif verb in _VERBS and not words:
        _VERBS[verb]()
    elif verb == "proved" and not words:
        return 0 if listing() == _read(f"{STATE}/proved") else 1
    elif verb == "watch" and not words:
        problems = list(watch())
        for problem in problems:
            _say(3, problem)
        return 1 if problems else 0
    else:
        _say(3, "usage: holdfast-firewall keep | arm SECONDS | disarm | restore | load | watch")
        return 2
    return 0


def main(verb: str = "", *words: str) -> int:
    """Run the command in the first argument; return 1 if there is something to report."""
    try:
        with _alone():
            return _do(verb, words)
    except OSError as error:
        _say(3, str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
