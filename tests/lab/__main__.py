"""The lab by hand: `python -m tests.lab --help`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.lab.images import RELEASES, VARIANTS, LabError, ensure_image
from tests.lab.lab import DEFAULT_DIRECTORY, DEFAULT_RELEASE, SPECS, Lab, destroy

MACHINE_VERBS = {
    "start": "power on and wait for SSH",
    "shutdown": "power off in order",
    "crash": "cut the power",
    "reboot": "reboot from inside and wait for SSH",
    "wipe": "put a fresh disk in (power off first)",
    "block": "pull the LAN cable",
    "unblock": "put the LAN cable back",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m tests.lab", description="The virtual rack.")
    root.add_argument("--dir", type=Path, default=DEFAULT_DIRECTORY, help="the lab's directory")
    verbs = root.add_subparsers(dest="verb", required=True)

    up = verbs.add_parser("up", help="start machines and leave them running")
    up.add_argument("machines", nargs="*", default=["rack"], metavar="machine")
    up.add_argument("--release", default=DEFAULT_RELEASE, choices=RELEASES, help="the rack's")
    up.add_argument("--cold", action="store_true", help="boot instead of copying a booted machine")
    up.add_argument("--debian", choices=("12", "13"), help="short for --release debian-N")

    verbs.add_parser("down", help="cut the power and delete the lab")
    verbs.add_parser("status", help="what runs, and where its SSH is")

    execute = verbs.add_parser("exec", help="run a command as root, beside the network")
    execute.add_argument("machine")
    execute.add_argument("command")

    ssh = verbs.add_parser("ssh", help="log in as the operator")
    ssh.add_argument("machine")
    ssh.add_argument("arguments", nargs=argparse.REMAINDER)

    for verb, meaning in MACHINE_VERBS.items():
        verbs.add_parser(verb, help=meaning).add_argument("machine")
    for verb in ("save", "restore"):
        tagged = verbs.add_parser(verb, help=f"{verb} memory and disk under a tag")
        tagged.add_argument("machine")
        tagged.add_argument("tag")
    for verb in ("cut", "heal"):
        cable = verbs.add_parser(verb, help=f"{verb} the LAN between machines")
        cable.add_argument("machines", nargs="*", metavar="machine")
    verbs.add_parser("counts", help="frames the LAN carried")

    image = verbs.add_parser("image", help="build an image into the cache")
    image.add_argument("release", choices=RELEASES)
    image.add_argument("variant", choices=VARIANTS)
    image.add_argument("--rebuild", action="store_true", help="even if the cache has one")
    return root


def main() -> int:
    """Run one verb; returns the exit status."""
    arguments = parser().parse_args()
    console = Console(stderr=True)
    try:
        return _run(arguments, console)
    except LabError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1


def _run(arguments: argparse.Namespace, console: Console) -> int:
    verb, directory = arguments.verb, arguments.dir
    if verb == "image":
        image = ensure_image(arguments.release, arguments.variant, rebuild=arguments.rebuild)
        print(image.directory)
        return 0
    if verb == "down":
        destroy(directory)
        return 0
    if verb == "up":
        return _up(arguments, console)
    lab = Lab.open(directory)
    if verb == "status":
        _status(lab)
    elif verb == "exec":
        done = lab.machine(arguments.machine).run(arguments.command)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode
    elif verb == "ssh":
        target = [f"{arguments.machine}-lan", *arguments.arguments]
        command = ["ssh", "-F", str(lab.write_ssh_config()), *target]
        return subprocess.run(command, check=False).returncode
    elif verb in ("save", "restore"):
        getattr(lab.machine(arguments.machine), verb)(arguments.tag)
    elif verb in ("cut", "heal"):
        getattr(lab.network, verb)(*arguments.machines)
    elif verb == "counts":
        _counts(lab)
    elif verb == "start":
        lab.start(arguments.machine)
    else:
        getattr(lab.machine(arguments.machine), verb)()
    return 0


def _up(arguments: argparse.Namespace, console: Console) -> int:
    release = f"debian-{arguments.debian}" if arguments.debian else arguments.release
    started = time.monotonic()
    with console.status("images"):
        if (arguments.dir / "lab.json").exists():
            lab = Lab.open(arguments.dir).with_machines(arguments.machines, release)
        else:
            lab = Lab.create(arguments.dir, release=release, machines=arguments.machines)
    with console.status(f"booting {', '.join(arguments.machines)}"):
        lab.start(*arguments.machines, warm=() if arguments.cold else tuple(SPECS))
    console.print(f"up in {time.monotonic() - started:.0f} s")
    for name in arguments.machines:
        print(f"ssh -F {lab.directory / 'ssh_config'} {name}-lan")
    return 0


def _status(lab: Lab) -> None:
    table = Table("machine", "release", "power", "ssh", "LAN")
    for machine in lab:
        table.add_row(
            machine.name,
            machine.image.release,
            "on" if machine.running() else "off",
            f"127.0.0.1:{machine.ssh_port}" if machine.has_port() else "",
            f"{machine.spec.lan_ipv4} {machine.spec.lan_ipv6}",
        )
    Console().print(table)


def _counts(lab: Lab) -> None:
    table = Table("from", "to", "frames", "bytes", "dropped")
    for (source, target), traffic in lab.network.counts().items():
        row = (traffic.frames, traffic.bytes, traffic.dropped)
        table.add_row(source, target, *map(str, row))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
