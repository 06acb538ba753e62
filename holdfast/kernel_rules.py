"""Rules in the kernel: loaded before the network is up, and looked at every minute.

The program that loads them, with its verb ``load``, also looks, with its verb ``watch``: it puts
back what a hand or a program has taken or changed, and exits 1 with a sentence, which makes an
alert. It may keep what it saw in /run/holdfast/<name>.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.sandbox import LOADS_RULES, Directive
from holdfast.service import EVERY_MINUTE, LOGS_NO_STARTS, STAYS, UNRATIONED, Program
from holdfast.settings import Service

KEEPS = Directive("RuntimeDirectoryPreserve", "yes", "What it saw last is there the next time.")


def loader(name: str, description: str, program: str) -> Program:
    """What loads the rules at every boot; stopping it opens nothing."""
    return Program(
        service=Service(name=name, unit=f"holdfast-{name}.service", user="root", tier="T1"),
        description=description,
        kind="oneshot",
        command=(program, "load"),
        reload=(program, "load"),
        runtime=f"holdfast/{name}",
        # The boot waits for it.
        start_seconds=300,
        at_boot=True,
        wanted_by=("sysinit.target",),
        order=(
            Directive("DefaultDependencies", "no"),
            Directive("Wants", "network-pre.target"),
            Directive("After", "local-fs.target"),
            Directive("Before", "sysinit.target network-pre.target shutdown.target"),
            Directive("Conflicts", "shutdown.target"),
        ),
        tuned=(STAYS, KEEPS),
        isolated=True,
        relaxed=LOADS_RULES,
    )


def watch(
    name: str,
    description: str,
    program: str,
    after: str,
    relaxed: Sequence[Directive] = LOADS_RULES,
) -> Program:
    """What looks at the rules every minute; ``after`` names the units that load them."""
    unit = f"holdfast-{name}-watch.service"
    return Program(
        service=Service(name=f"{name}-watch", unit=unit, user="root", tier="T1"),
        description=description,
        kind="oneshot",
        command=(program, "watch"),
        runtime=f"holdfast/{name}",
        # systemd itself sets no limit, and starts it no second time meanwhile.
        start_seconds=600,
        order=(Directive("After", after), UNRATIONED),
        tuned=(KEEPS, LOGS_NO_STARTS),
        isolated=True,
        relaxed=(*relaxed,),
        timer=EVERY_MINUTE,
    )
