"""Host tests that may be skipped: the inventory declares nothing to test, or the machine lacks it.

The reason of a skipped test is not trusted: ``UNDECLARED`` compares it with the inventory. Tests
that cannot run on one kind of machine are listed in ``ELSEWHERE``.

`python -m tests.drill.not_here INVENTORY` prints the sentences of ``UNDECLARED`` that are true for
an inventory. It is a program of its own, because pyinfra's inventories import gevent, which patches
every process that reads them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast import egress
from holdfast.engines.servers import declared_engines
from holdfast.gpu import containers, modes
from holdfast.registry import declared_services
from holdfast.routing import ledger_service
from holdfast.settings import HostSettings
from tests.drill.converge import ROOT

Sentences = Collection[tuple[str, str]]
"""Files of host tests, each with the reason with which a test of it may skip itself."""
SKIPPED = "skipped: "
"""Prefix of the result of a skipped test; its reason follows."""


def _walls(settings: HostSettings, tier: str = "") -> list[egress.Wall]:
    return [wall for wall in egress.walls(settings) if tier in ("", wall.tier)]


def _bridges(settings: HostSettings, tier: str = "") -> list[egress.Wall]:
    return [wall for wall in egress.bridges(settings) if tier in ("", wall.tier)]


def _no_compute_card(settings: HostSettings) -> bool:
    return not settings.gpus or all(card.role != "compute" for card in settings.gpus.cards)


def _publishes(settings: HostSettings) -> bool:
    return any(
        service.network and any(listen.container for listen in service.listens)
        for service in settings.services
    )


def _every_engine_takes_turns(settings: HostSettings) -> bool:
    engines = declared_engines(settings)
    return all(modes.targets_of(settings, engine.name) for engine in engines)


UNDECLARED: dict[tuple[str, str], Callable[[HostSettings], bool]] = {
    ("backup", "this host is not backed up"): lambda settings: settings.backup is None,
    ("clouds", "no router of this host has a cloud"): lambda settings: (
        not any(router.clouds for router in settings.routers)
    ),
    ("docker", "the inventory declares no container engine for this host"): lambda settings: (
        settings.docker is None
    ),
    ("docker", "this host has no T1 network"): lambda settings: not _bridges(settings, "T1"),
    ("docker", "no running container publishes the port of a service on a network"): (
        lambda settings: not _publishes(settings)
    ),
    ("egress", "this host has no T1 service with a user of its own"): (
        lambda settings: not _walls(settings, "T1")
    ),
    ("egress", "this host has no T1 network"): lambda settings: not _bridges(settings, "T1"),
    ("egress", "no service of this host may call a cloud"): lambda settings: (
        not any(wall.clouds for wall in (*_walls(settings), *_bridges(settings)))
    ),
    ("egress", "this host has no tailnet"): lambda settings: settings.tailnet is None,
    # Debian installs it with the client of NFS.
    ("egress", "this host has no keyutils, so the kernel can start no program"): (
        lambda settings: not settings.storage.mounts
    ),
    ("egress", "this host has no T1 service with a unit that the inventory only names"): (
        lambda settings: not egress.drop_ins(settings)
    ),
    ("floor", "this host has no floor"): lambda settings: settings.floor is None,
    ("gpu", "the inventory declares no NVIDIA card for this host"): lambda settings: (
        settings.gpus is None
    ),
    ("gpu", "all cards of this host belong to guests"): _no_compute_card,
    ("gpu", "no container of this host may use its cards"): lambda settings: (
        not containers.wants_containers(settings)
    ),
    ("gpu_modes", "this host has no modes"): lambda settings: not modes.sets(settings),
    ("ledger", "this host spends nothing on clouds"): lambda settings: (
        ledger_service(settings) is None
    ),
    ("router", "this host has no router"): lambda settings: not settings.routers,
    ("router", "all callers of this host's routers have keys of their own"): lambda settings: (
        not any(router.api_key for router in settings.routers)
    ),
    ("storage", "this host has no mounts"): lambda settings: not settings.storage.mounts,
    ("storage", "this host stores no models"): lambda settings: (
        not settings.storage.models and not settings.storage.checkpoints
    ),
    ("storage", "this host stores no model of one file"): (
        lambda settings: not settings.storage.models
    ),
    ("storage", "this host stores no checkpoints"): lambda settings: (
        not settings.storage.checkpoints
    ),
    ("storage", "this host has no read-only mounts"): lambda settings: (
        not any(mount.read_only for mount in settings.storage.mounts)
    ),
    ("services", "no service of ours runs on this host now"): lambda settings: (
        not any(each.unit.startswith("holdfast-") for each in declared_services(settings))
    ),
    ("tailnet", "this host is on no tailnet"): lambda settings: settings.tailnet is None,
    ("engines", "this host has no engine"): lambda settings: not declared_engines(settings),
    ("engines", "no engine belongs to the active mode"): _every_engine_takes_turns,
}
"""File and reason of a skipped test -> whether the inventory confirms it."""

ELSEWHERE: dict[str, tuple[tuple[str, str], ...]] = {
    "native": (
        ("floor::its_limits_are_in_force", "the controller may have no memory controller to lend"),
        ("hardening::a_change_of_configuration_is_on_record", "a container records no audit event"),
        (
            "egress::no_key_makes_the_kernel_ask_a_resolver",
            "the kernel starts its program for a key on the controller",
        ),
        ("hardening::programs_are_confined", "the controller's kernel may have no AppArmor"),
        (
            "egress::the_journal_has_the_calls_of_containers",
            "a container's journal does not have the kernel's log",
        ),
        (
            "egress::the_journal_has_the_calls_of_each_user",
            "a container's journal does not have the kernel's log",
        ),
        (
            "gpu::no_card_has_fallen_off_the_bus_since_boot",
            "a container's journal does not have the kernel's log",
        ),
    ),
}
"""Kind of machine -> `file::function` that only the other kind can run, and the reason."""


def undeclared(settings: HostSettings) -> set[tuple[str, str]]:
    """The sentences that are true for a host."""
    return {sentence for sentence, is_so in UNDECLARED.items() if is_so(settings)}


def reasons_of(inventory: Path) -> Sentences:
    """The sentences that are true for an inventory, computed in a process of its own.

    Raises:
        subprocess.CalledProcessError: the inventory is refused; standard error says why.
    """
    told = subprocess.run(
        [sys.executable, "-m", "tests.drill.not_here", str(inventory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {(file, text) for file, text in json.loads(told.stdout)}


@dataclass(frozen=True)
class Verdict:
    """The verdict on one file of host tests; ``absent``: all its tests are rightly skipped."""

    file: str
    ok: bool
    seen: str
    absent: bool = False


def judge(files: Sequence[str], results: Mapping[str, str], reasons: Sentences) -> list[Verdict]:
    """Judge the results of host tests (`Site.host_tests`), file by file.

    Results that belong to no file, for example when pytest failed, make a verdict of their own.
    """
    found = []
    for file in files:
        own = {test: told for test, told in results.items() if test.startswith(f"{file}::")}
        found.append(_judge(file, own, reasons))
    strange = [test for test in results if test.partition("::")[0] not in files]
    if strange:
        found.append(Verdict("pytest", False, "; ".join(strange)))
    return found


def _judge(file: str, results: Mapping[str, str], reasons: Sentences) -> Verdict:
    failed = [test for test, told in results.items() if told in ("failed", "error")]
    skipped = {
        test: told.removeprefix(SKIPPED)
        for test, told in results.items()
        if told.startswith(SKIPPED)
    }
    unexplained = [
        f"{test} ({said})" for test, said in skipped.items() if (file, said) not in reasons
    ]
    passed = len(results) - len(failed) - len(skipped)
    distinct = "; ".join(dict.fromkeys(skipped.values()))
    if failed:
        return Verdict(file, False, f"failed: {', '.join(failed)}")
    if unexplained:
        return Verdict(file, False, f"skipped without a reason: {', '.join(unexplained)}")
    if not results:
        return Verdict(file, False, "nothing ran")
    if not passed:
        return Verdict(file, True, distinct, absent=True)
    explained = f", {len(skipped)} do not apply here: {distinct}" if skipped else ""
    return Verdict(file, True, f"{passed} hold{explained}")


def _main() -> None:
    # This imports gevent.
    from holdfast import inventory_file

    with inventory_file.refusals():
        hosts = inventory_file.load(sys.argv[1]).values()
        true = set.intersection(*map(undeclared, hosts))
    print(json.dumps(sorted(true)))


if __name__ == "__main__":
    _main()
