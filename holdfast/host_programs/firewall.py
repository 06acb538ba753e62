#!/usr/bin/python3 -I
"""Undo a firewall change that no login proves, and keep the proved firewall in force.

Placed on hosts as it is, so it uses the standard library only and needs Python 3.11.

``keep`` saves the present firewall before a change, ``arm SECONDS`` sets the change a deadline, and
``disarm`` says that a login proved it: what is in force then is what ``watch`` holds the host to.
``restore`` undoes a change: at its deadline, at the next boot if the power failed before, or by
hand.

``load`` has the kernel take ufw's files again. No packet finds the host open meanwhile: ufw itself
stops before it starts.

``watch`` exits 1 with a sentence where the firewall in force is not the one that was proved; it
switches ufw on and loads its files again. ``proved`` exits 0 where it is that one.
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
"""What ufw's own command holds while it works."""
STATE = "/var/lib/holdfast/firewall"
"""Whether a change waits for its proof, and what was proved last."""
RUN = "/run/holdfast/firewall"
MEMBERSHIP = "/etc/holdfast/tailnet-membership.json"
"""Which rules the watch over the tailnet may add, and how each looks in force."""
DOCKER_USER = "/usr/local/lib/holdfast/docker-user"
DOCKER = ("/usr/bin/dockerd", "/usr/sbin/dockerd")
"""Where Docker's own package has its engine, and Debian's."""
IPV6 = "/proc/net/if_inet6"
ROLLBACK = "holdfast-firewall-rollback"
CHAINS = ("DOCKER-USER", "HOLDFAST-FORWARD")
"""Our own chains. Every chain of ufw's begins with its name."""
FORGOTTEN_SECONDS = 300
"""How long a change may wait for its proof without a deadline: its preparation takes seconds."""
SETTLE_SECONDS = 3
"""How long a starting Docker may take to put back the jump that it took out."""

_FIRST = re.compile(
    "ufw6?-(before-logging|before|after|after-logging|reject|track)-(input|output|forward)"
)
"""The chains of ufw's that built-in ones ask."""

# It ends by itself, should this program be killed: a guard that stayed would lock the operator out.
# An emulated machine takes half a minute to load ufw's files.
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
    """One change at a time, ufw's own command included; it locks the same file in the same way.

    A stop of this program, or the end of the login that started it, takes effect once it is done,
    for the programs that it runs as well: half a firewall is none.
    """
    with Path(UFW_LOCK).open("w", encoding="utf-8") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        # Ignored, not blocked: ufw's shell takes no block over.
        for ending in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(ending, signal.SIG_IGN)
        yield


@contextmanager
def _shut() -> Iterator[None]:
    """Nothing new gets in or through meanwhile; connections that stand go on."""
    try:
        _run("/usr/sbin/nft", "--file", "-", text=_SWAP)
    except OSError as error:
        # The way back must not depend on it.
        _say(4, f"the firewall is loaded without a guard: {error}")
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
    """ufw has no rules in force meanwhile; then it loads its files, also where a step failed."""
    with _shut():
        try:
            _run(UFW_INIT, "force-stop")
            yield
        finally:
            _start()


def _is_held(line: str) -> bool:
    """Whether a line of ``iptables -S`` must stay as it was proved.

    Docker, Tailscale and libvirt put jumps to chains of their own into the built-in ones.
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
    """The rules in force by which this host has opened SSH on the LAN: its tailnet is lost."""
    try:
        rules = json.loads(_read(MEMBERSHIP) or '{"rules": []}')["rules"]
    except (ValueError, KeyError, TypeError):
        return set()
    there = _read(f"{UFW}/user.rules") + _read(f"{UFW}/user6.rules")
    return {rule["live"] for rule in rules if f"### tuple ### {rule['rule']}\n" in there}


def listing() -> str:
    """What must stay as it was proved: that a boot loads ufw, and the rules, chain by chain."""
    found = re.findall(r"(?m)^ENABLED=.*\n", _read(CONF))
    returned = _returned()
    for tables in _families():
        for table in ("filter", "mangle"):
            held = filter(_is_held, _list(tables, table))
            # In which order chains were made means nothing.
            ordered = sorted(held, key=lambda line: line.split()[1])
            named = [f"{tables} -t {table} {line}" for line in ordered]
            found += [f"{line}\n" for line in named if line not in returned]
    return "".join(found)


def _write(path: str, text: str) -> None:
    """Put a file there whole, on disk before it has its name."""
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
    """Where a file is kept: in its own folder, so that a full disk cannot hold up its return.

    A sandbox makes each folder that its unit may write a mount of its own, and nothing is renamed
    from one to another.
    """
    return file.with_name(f".{file.name}.kept")


def _copies() -> dict[Path, Path]:
    """Each file that is kept, and its copy."""
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
    """Save the present firewall, unless one that was proved is saved already."""
    _end_deadline()
    # The last proved firewall is kept: a second change before the proof does not replace it.
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
    """Have the change undone when ``seconds`` are over."""
    _run(
        *("systemd-run", "--quiet", "--collect", f"--unit={ROLLBACK}.service"),
        *(f"--on-active={seconds}", "--timer-property=AccuracySec=1s"),
    )


def disarm() -> None:
    """Let the change stay, and hold the host to what is in force now.

    Raises:
        OSError: the change was undone before.
    """
    if not _armed().exists():
        raise OSError(
            "The proof came after the deadline: the former firewall is back. Deploy again."
        )
    _write(f"{STATE}/proved", listing())
    _armed().unlink()
    # Without this a power cut could bring the mark back, and a boot would undo what was proved.
    _sync()
    _forget()
    _end_deadline()


def restore() -> None:
    """Bring the saved firewall back, where a change waits for its proof."""
    if not _armed().exists():
        return
    _say(4, "No login proved the last firewall change in time: restoring the former firewall.")
    with _stopped():
        for file, copy in _copies().items():
            copy.replace(file)
    _armed().unlink()


def _begin_again() -> None:
    """Take ufw's chains away where one of them is asked by no built-in chain.

    ufw hooks its chains in when it makes them, and it keeps those that are there.
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
    """Have the kernel take ufw's files again, without an open moment."""
    with _stopped():
        _begin_again()


def _unproved() -> Iterator[str]:
    """What is wrong about a change that waits for its proof: that it does so without an end."""
    with contextlib.suppress(OSError):
        _run("systemctl", "--quiet", "is-active", f"{ROLLBACK}.timer")
        return
    seconds = time.time() - _armed().stat().st_mtime
    if seconds > FORGOTTEN_SECONDS:
        yield (
            f"a firewall change has waited {seconds // 60:.0f} minutes for its proof, without a"
            " deadline: deploy to this host again"
        )


def _differences(proved: str, found: str) -> str:
    """The first rules that are gone and that are new, as a person would read them."""
    was, now = proved.splitlines(), found.splitlines()
    gone = [f"gone: {line}" for line in was if line not in now]
    new = [f"new: {line}" for line in now if line not in was]
    told = [*gone[:3], *new[:3]] or ["its rules stand in another order"]
    more = len(gone) + len(new) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


def _take_out(proved: str, found: str) -> None:
    """Remove what a hand has added to the built-in chains, which loading leaves alone."""
    for line in found.splitlines():
        if line not in proved.splitlines() and re.search(r" -A (INPUT|FORWARD) ", line):
            tables, *rule = shlex.split(line.replace(" -A ", " -D ", 1))
            _run(f"/usr/sbin/{tables}", "--wait", *rule)


def _switch_on() -> bool:
    """Have ufw enabled; whether it was not."""
    text = _read(CONF)
    on = re.sub(r"(?m)^ENABLED=.*$", "ENABLED=yes", text)
    if on == text:
        return False
    _write(CONF, on)
    return True


def watch() -> Iterator[str]:
    """What is wrong about the firewall in force; what can be mended is."""
    if _armed().exists():
        yield from _unproved()
        return
    proved = _read(f"{STATE}/proved")
    if not proved:
        yield "no login has proved the firewall of this host: deploy to it"
        return
    found = listing()
    if found != proved:
        time.sleep(SETTLE_SECONDS)
        found = listing()
    if found == proved:
        return
    what = _differences(proved, found)
    left = f"{RUN}/left"
    # What loading did not mend the last time, it does not mend now.
    if found != _read(left):
        if _switch_on():
            what = f"ufw was disabled ({what})"
        load()
        _take_out(proved, found)
        found = listing()
        _write(left, found)
    if found == proved:
        yield f"the firewall was changed by hand, and is in force again: {what}"
    else:
        yield (
            "the firewall is not the one that a login proved, and ufw's files are not either:"
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
    """Do what the first argument says; 1 where there is something to tell."""
    try:
        with _alone():
            return _do(verb, words)
    except OSError as error:
        _say(3, str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
