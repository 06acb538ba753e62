"""The watch over rules in the kernel: every minute, are they still what was loaded?

The program that loads them looks with its verb ``watch``: it puts back what a hand or a program has
taken or changed, and exits 1 with a sentence, which makes an alert.
"""

from __future__ import annotations

from collections.abc import Sequence

from facts.places import SYSTEM
from holdfast import alerts
from holdfast.render import render
from holdfast.sandbox import LOADS_RULES, Directive, sandbox
from holdfast.settings import Service


def unit_files(
    name: str, *, said: str, after: str, program: str, relaxed: Sequence[Directive] = LOADS_RULES
) -> dict[str, str]:
    """Path to text of ``holdfast-<name>-watch``'s service and timer.

    ``said`` is what it does, ``after`` the units that load the rules. The program may keep what it
    saw in /run/holdfast/<name>.
    """
    return {
        f"{SYSTEM}/holdfast-{name}-watch.{kind}": render(
            template,
            name=name,
            said=said,
            description=f"{said}, looked at every minute",
            after=after,
            program=program,
            on_failure=alerts.ON_FAILURE,
            sandbox=sandbox(
                Service(name=name, unit=f"holdfast-{name}-watch.{kind}", user="root", tier="T1"),
                isolated=True,
                relaxed=relaxed,
            ),
        )
        for kind, template in (
            ("service", "service/rules_watch.service.j2"),
            ("timer", "service/every_minute.timer.j2"),
        )
    }
