"""The watch over a host's membership of its tailnet: its configuration and its units.

If the membership is lost, the watch opens SSH on the LAN again, to the same sources as before the
tailnet was proved (`holdfast.firewall.holes`) and to no others.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from holdfast.firewall import RUNS_UFW, WITHOUT_TAILNET, deletion, holes
from holdfast.host_programs import tailnet_membership as program
from holdfast.kernel_rules import KEEPS
from holdfast.registry import declared_services
from holdfast.sandbox import Directive
from holdfast.service import EVERY_MINUTE, LOGS_NO_STARTS, UNRATIONED, File, Program
from holdfast.settings import HostSettings, Service
from holdfast.shipping import path_of

CONFIG = program.CONFIG
PROGRAM = path_of(program)
RUN = "holdfast/tailnet-membership"
"""The folder below /run that records since when the host has been a member, or not one."""
SERVICE = "holdfast-tailnet-membership.service"
TIMER = "holdfast-tailnet-membership.timer"


def _rules(settings: HostSettings) -> list[dict[str, Any]]:
    if settings.ssh.lan_access != "until-tailnet" or not settings.ssh.lan_return:
        return []
    services = declared_services(settings)
    # A hole that is open for another reason must not be closed with ours.
    others = {hole.identity for hole in holes(settings, services, lan_ssh=None)}
    return [
        {
            "rule": hole.rule,
            "open": shlex.split(hole.command),
            "close": shlex.split(deletion(hole.rule)),
            "live": hole.live,
        }
        for hole in holes(settings, services, lan_ssh=WITHOUT_TAILNET)
        if hole.identity not in others
    ]


def config(settings: HostSettings) -> str:
    """The program's configuration as JSON: two limits, and the rules of ufw that it may add.

    Raises:
        ValueError: the host is on no tailnet.
    """
    tailnet = settings.tailnet
    if tailnet is None:
        raise ValueError(f"{settings.hostname} is on no tailnet")
    content = {
        "key_warning_days": tailnet.key_warning_days,
        "lost_minutes": tailnet.lost_minutes,
        "rules": _rules(settings),
    }
    return json.dumps(content, indent=2) + "\n"


def programs(settings: HostSettings) -> list[Program]:
    """What looks at the membership every minute; none where the host is on no tailnet."""
    if settings.tailnet is None:
        return []
    return [
        Program(
            service=Service(name="tailnet-membership", unit=SERVICE, user="root", tier="T1"),
            description="Holdfast: watch the membership of the tailnet, and open SSH on the LAN"
            " where it is lost",
            kind="oneshot",
            source=program,
            command=(PROGRAM,),
            files=(File(CONFIG, config(settings)),),
            runtime=RUN,
            start_seconds=600,
            order=(Directive("After", "ufw.service"), UNRATIONED),
            tuned=(KEEPS, LOGS_NO_STARTS),
            isolated=True,
            relaxed=RUNS_UFW,
            timer=EVERY_MINUTE,
        )
    ]
