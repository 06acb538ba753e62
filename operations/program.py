"""Have programs of ours on a host: their files placed, their units running, restarted when due.

For example, in a deploy::

    program.have(what="the floor", programs=[floor.program(settings)])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from holdfast import alerts, service
from holdfast.secrets import require
from holdfast.service import PROXY, Program
from holdfast.service.units import proxies
from operations import host_files, units
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit


def have(
    what: str,
    programs: Sequence[Program],
    files: Sequence[HostFile] = (),
    directories: Sequence[HostDirectory] = (),
    together: bool = False,
) -> None:
    """Place the files of ``programs`` and have their units running; ``what`` names them.

    ``files`` and ``directories`` are placed beside; for ``together`` see `operations.units.settle`.
    """
    place(what, programs, files, directories)
    settle(f"Have {what} running", programs, together)


def place(
    what: str,
    programs: Sequence[Program],
    files: Sequence[HostFile] = (),
    directories: Sequence[HostDirectory] = (),
) -> None:
    """Place all that ``programs`` run and read, and ``files`` and ``directories`` beside it."""
    notify = HostFile(alerts.UNIT_PATH, alerts.notify_unit())
    host_files.place(
        name=f"Write the files of {what}",
        directories=[host_files.CONFIGURATION, host_files.CREDENTIALS, *directories],
        files=[notify, *placed(programs), *files],
    )


def settle(
    name: str, programs: Sequence[Program], together: bool = False, wait: bool = True
) -> None:
    """Have the units of ``programs`` as declared; the rest is as in `operations.units.settle`."""
    units.settle(name=name, units=settled(programs), together=together, wait=wait)


def placed(programs: Sequence[Program]) -> list[HostFile]:
    """Every file of ``programs`` as it should be, once.

    Raises:
        LookupError: a secret that a credential is made of is not set.
    """
    credentials = [
        HostFile(credential.path, credential.text(require), mode="600")
        for program in programs
        for credential in program.credentials
    ]
    sources = [host_files.program(program.source) for program in programs if program.source]
    written = [HostFile(file.path, file.text) for file in service.files(programs)]
    return list(dict.fromkeys([*sources, *credentials, *written]))


def settled(programs: Sequence[Program]) -> list[Unit]:
    """Every unit of ``programs`` as it should be, in their order."""
    found = [unit for program in programs for unit in _units(program)]
    proxied = any(program.proxied or PROXY in program.command for program in programs)
    return [*([units.NO_OTHER_PROXY] if proxied else []), *found]


def _units(program: Program) -> Iterator[Unit]:
    is_open = program.socket is None or program.socket.is_open
    if program.socket:
        yield Unit(
            f"{program.stem}.socket",
            enabled=is_open,
            running=is_open,
            restart_after=[program.path("socket")],
        )
    if program.timer:
        # The service's file, too: what a timer starts must be read again when it changes.
        changed = [program.path("timer"), program.path("service")]
        yield Unit(f"{program.stem}.timer", restart_after=changed)
    elif program.kind == "oneshot" and not program.at_boot:
        # Another unit starts it; systemd must read it again when it changes.
        yield Unit(program.unit, enabled=None, running=None)
    else:
        yield Unit(
            program.unit,
            enabled=is_open,
            running=is_open,
            restart_after=program.restart_after,
            along_with=list(program.along_with),
        )
    for proxy in proxies(program):
        yield from _units(proxy)
