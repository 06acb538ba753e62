"""Proof that the host tests can fail: break what each of them guards, and see it turn red."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.drill.site import Site
from tests.lab.machine import Machine, MachineError

_KEPT = "/root/before-the-sabotage"


@dataclass(frozen=True)
class Sabotage:
    """One thing done to a rack by hand.

    ``red`` are the host tests it must turn red, as ``file::function`` without ``test_``; ``hurt``
    and ``heal`` are run as root.
    """

    what: str
    red: tuple[str, ...]
    hurt: str
    heal: str


def edited(path: str, expression: str, then: str = "true") -> tuple[str, str]:
    """``hurt`` and ``heal`` for a file that sed changes with ``expression``; fails if it cannot."""
    kept, file = f"{_KEPT}/{path.replace('/', '-')}", shlex.quote(path)
    hurt = (
        f"mkdir -p {_KEPT} && cp -aL {file} {kept} && sed -i --follow-symlinks"
        f" {shlex.quote(expression)} {file} && ! cmp -s {kept} {file} && {then}"
    )
    # Its times come back as well, for checks that compare them.
    return hurt, f"cp -a {kept} $(readlink -f {file}) && rm {kept} && {then}"


def configured(unit: str, lines: Sequence[str], then: str = "true") -> tuple[str, str]:
    """``hurt`` and ``heal`` for a unit that is given a drop-in of ``lines``."""
    folder = f"/run/systemd/system/{unit}.d"
    text = shlex.quote("\n".join(["[Service]", *lines]))
    reload = f"systemctl daemon-reload && {then}"
    return (
        f"mkdir -p {folder} && printf '%s\\n' {text} > {folder}/zz-stray.conf && {reload}",
        f"rm {folder}/zz-stray.conf && rmdir --ignore-fail-on-non-empty {folder} && {reload}",
    )


def rewritten(path: str, change: str) -> str:
    """Shell text for a JSON file that a statement of Python about its ``value`` changes."""
    program = "\n".join(
        [
            "import json, os",
            f"value = json.load(open({path!r}))",
            change,
            f"json.dump(value, open({path + '.new'!r}, 'w'))",
            f"os.replace({path + '.new'!r}, {path!r})",
        ]
    )
    return f"python3 -c {shlex.quote(program)}"


def lying(program: str, script: str) -> tuple[str, str]:
    """``hurt`` and ``heal`` for a program whose answers a script changes, ahead in PATH."""
    liar = f"/usr/local/bin/{program}"
    text = shlex.quote(f"#!/bin/bash\n{script}")
    return f"printf '%s\\n' {text} > {liar} && chmod 755 {liar}", f"rm {liar}"


def commit(
    site: Site, rack: Machine, sabotages: Sequence[Sabotage], *, complete: bool = True
) -> None:
    """Do each in turn, see its tests turn red, and undo it.

    In the end all tests of the files that they are about must hold again. Where the
    sabotages are ``complete``, each of them, as far as it holds on this rack, must have been red.
    """
    record = site.record
    files = {test.partition("::")[0] for sabotage in sabotages for test in sabotage.red}
    site = replace(site, judged=frozenset(f"test_{file}.py" for file in files))
    before = site.host_tests("before the sabotage")
    held = {test for test, outcome in before.items() if outcome == "passed"}
    seen: set[str] = set()
    for sabotage in sabotages:
        red = _red(site, rack, sabotage)
        wanted = {test for test in held if _function(test) in sabotage.red}
        missed = sorted(wanted - red) or sorted(set(sabotage.red) - set(map(_function, wanted)))
        record.check(f"the tests report that {sabotage.what}", not missed, missed or "")
        seen |= red
    if complete:
        never = sorted(held - seen)
        record.check(f"each of {len(held)} host tests has been red", not never, never or "")
    site.verify("after the sabotage")


def _function(test: str) -> str:
    return test.partition("[")[0]


def _red(site: Site, rack: Machine, sabotage: Sabotage) -> set[str]:
    outcomes: dict[str, str] = {}
    try:
        # As often as units are started here, systemd would give them up.
        rack.succeed("systemctl reset-failed")
        rack.succeed(sabotage.hurt, timeout_seconds=300)
        outcomes = site.host_tests(sabotage.what, sabotage.red)
        rack.succeed("systemctl reset-failed")
        rack.succeed(sabotage.heal, timeout_seconds=300)
    except MachineError as error:
        site.record.check(f"sabotage and its end: {sabotage.what}", False, error)
        # What is half done would make the next ones fail.
        rack.execute(sabotage.heal, timeout_seconds=300)
    return {test for test, outcome in outcomes.items() if outcome == "failed"}
