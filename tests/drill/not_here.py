"""Which host tests may be left out: of what an inventory does not declare, and a machine lacks.

What a test says when it skips itself is not believed: ``UNDECLARED`` asks the inventory whether it
is so. What a kind of machine cannot show at all stands in ``ELSEWHERE``, and is not run there.

`python -m tests.drill.not_here INVENTORY` prints the sentences of ``UNDECLARED`` that are true of
an inventory. A program of its own, because pyinfra's inventories bring gevent, which patches every
process that reads them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast import egress
from holdfast.gpu import containers, modes
from holdfast.registry import declared_services
from holdfast.routing import ledger_service
from holdfast.settings import HostSettings
from tests.drill.converge import ROOT

Sentences = Collection[tuple[str, str]]
"""Files of host tests, each with what a test of it may say when it skips itself."""
SKIPPED = "skipped: "
"""What the result of a skipped test begins with; what it said follows."""


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
    engines = settings.vllm.engines if settings.vllm else []
    return all(modes.targets_of(settings, engine.name) for engine in engines)


UNDECLARED: dict[tuple[str, str], Callable[[HostSettings], bool]] = {
    ("backup", "this host is not backed up"): lambda settings: settings.backup is None,
    ("clouds", "no router of this host leads to a cloud"): lambda settings: (
        not any(router.clouds for router in settings.routers)
    ),
    ("docker", "the inventory gives this host no container engine"): lambda settings: (
        settings.docker is None
    ),
    ("docker", "this host has no network of T1"): lambda settings: not _bridges(settings, "T1"),
    ("docker", "no container that runs publishes the port of a service on a network"): (
        lambda settings: not _publishes(settings)
    ),
    ("egress", "this host has no T1 service with a user of its own"): (
        lambda settings: not _walls(settings, "T1")
    ),
    ("egress", "this host has no network of T1"): lambda settings: not _bridges(settings, "T1"),
    ("egress", "nobody on this host calls a cloud"): lambda settings: (
        not any(wall.clouds for wall in (*_walls(settings), *_bridges(settings)))
    ),
    ("egress", "this host has no tailnet"): lambda settings: settings.tailnet is None,
    # Debian installs it with the client of NFS.
    ("egress", "this host has no keyutils, and the kernel no program to start"): (
        lambda settings: not settings.storage.mounts
    ),
    ("egress", "this host has no T1 service whose unit is its owner's"): (
        lambda settings: not egress.drop_ins(settings)
    ),
    ("floor", "this host has no floor"): lambda settings: settings.floor is None,
    ("gpu", "the inventory gives this host no NVIDIA card"): lambda settings: settings.gpus is None,
    ("gpu", "every card of this host belongs to a guest"): _no_compute_card,
    ("gpu", "no container of this host may use its cards"): lambda settings: (
        not containers.wants_containers(settings)
    ),
    ("gpu_modes", "no cards of this host take turns"): lambda settings: not modes.sets(settings),
    ("ledger", "nothing is spent on clouds here"): lambda settings: (
        ledger_service(settings) is None
    ),
    ("router", "this host has no router"): lambda settings: not settings.routers,
    ("router", "each caller of this host's routers has a key of their own"): lambda settings: (
        not any(router.api_key for router in settings.routers)
    ),
    ("storage", "this host mounts nothing"): lambda settings: not settings.storage.mounts,
    ("storage", "this host keeps no models"): lambda settings: (
        not settings.storage.models and not settings.storage.checkpoints
    ),
    ("storage", "this host keeps no model of one file"): (
        lambda settings: not settings.storage.models
    ),
    ("storage", "this host keeps no checkpoints"): lambda settings: (
        not settings.storage.checkpoints
    ),
    ("storage", "this host mounts nothing read-only"): lambda settings: (
        not any(mount.read_only for mount in settings.storage.mounts)
    ),
    ("services", "this host runs no service of ours"): lambda settings: (
        not any(each.unit.startswith("holdfast-") for each in declared_services(settings))
    ),
    ("tailnet", "this host is on no tailnet"): lambda settings: settings.tailnet is None,
    ("vllm", "this host has no engine of vLLM"): lambda settings: settings.vllm is None,
    ("vllm", "no engine is in the mode that is in force"): _every_engine_takes_turns,
}
"""File and sentence of a test that skips itself -> whether it is so, by the inventory."""

ELSEWHERE: dict[str, tuple[tuple[str, str], ...]] = {
    "native": (
        ("floor::its_limits_are_in_force", "the controller may have no memory controller to lend"),
        ("hardening::a_change_of_configuration_is_on_record", "a container records no audit event"),
        (
            "egress::nobodys_key_makes_the_kernel_ask_a_resolver",
            "what the kernel starts for a key, it starts on the controller",
        ),
        ("hardening::programs_are_confined", "the controller's kernel may have no AppArmor"),
        (
            "egress::the_journal_holds_whom_containers_called",
            "a container's journal does not have the kernel's log",
        ),
        (
            "egress::the_journal_holds_whom_each_called",
            "a container's journal does not have the kernel's log",
        ),
        (
            "gpu::no_card_has_fallen_off_the_bus_since_boot",
            "a container's journal does not have the kernel's log",
        ),
    ),
}
"""Kind of machine -> `file::function` that only the other kind can run, and why."""


def undeclared(settings: HostSettings) -> set[tuple[str, str]]:
    """The sentences that are true of a host."""
    return {sentence for sentence, is_so in UNDECLARED.items() if is_so(settings)}


def reasons_of(inventory: Path) -> Sentences:
    """The sentences that are true of an inventory, asked in a process of its own.

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
    """Of one file of host tests; ``absent`` means that all of it is skipped for good reasons."""

    file: str
    ok: bool
    seen: str
    absent: bool = False


def judge(files: Sequence[str], results: Mapping[str, str], reasons: Sentences) -> list[Verdict]:
    """Judge the results of host tests (`Site.host_tests`), file by file.

    What is in none of the files, as when pytest itself failed, is a verdict of its own.
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
    # It brings gevent.
    from holdfast import inventory_file

    with inventory_file.refusals():
        hosts = inventory_file.load(sys.argv[1]).values()
        true = set.intersection(*map(undeclared, hosts))
    print(json.dumps(sorted(true)))


if __name__ == "__main__":
    _main()
