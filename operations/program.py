"""Have programs of ours on a host: their files placed, their units running, restarted when due.

For example, in a deploy::

    program.have(what="the floor", programs=[floor.program(settings)])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from holdfast import alerts, service
from holdfast.python_environment import PythonEnvironment
from holdfast.secrets import require
from holdfast.service import PROXY, Program
from holdfast.service.units import proxies
from operations import artefact, host_files, packages, python_environment, tenants, units
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit


def have(what: str, programs: Sequence[Program], together: bool = False) -> None:
    """Install ``programs``, place their files and have their units running; ``what`` names them.

    For ``together`` see `operations.units.settle`.
    """
    install(what, programs)
    place(what, programs)
    settle(f"Have {what} running", programs, together)
    prune(programs)


def install(what: str, programs: Sequence[Program]) -> None:
    """Install where ``programs`` come from: packages, archives, environments, images."""
    if first := [file for program in programs for file in program.packages_read]:
        host_files.place(
            name=f"Write what the packages of {what} read",
            files=[HostFile(file.path, file.text) for file in first],
        )
    if needed := needed_packages(programs):
        packages.present(name=f"Install the packages of {what}", packages=needed)
    for archive in dict.fromkeys(each.archive for each in programs if each.archive):
        artefact.installed(
            name=f"Install {archive.name}",
            program=archive.name,
            artefact=archive.artefact,
            unpack=archive.unpack,
            file=archive.file,
            strip_components=archive.strip_components,
        )
    for python in _environments(programs):
        python_environment.installed(
            name=f"Install {python.name}",
            program=python.name,
            lock=python.lock,
            distribution=python.distribution,
            index=python.index,
        )
    if images := list(dict.fromkeys(each.image for each in programs if each.image)):
        tenants.pulled(name=f"Pull the images of {what}", images=images)


def prune(programs: Sequence[Program]) -> None:
    """Keep the Python environment before that of ``programs``, and none older."""
    for python in _environments(programs):
        python_environment.pruned(
            name=f"Keep one older {python.name}",
            program=python.name,
            lock=python.lock,
            distribution=python.distribution,
        )


def _environments(programs: Sequence[Program]) -> list[PythonEnvironment]:
    return list(dict.fromkeys(each.python for each in programs if each.python))


def needed_packages(programs: Sequence[Program]) -> list[str]:
    """The distribution packages of ``programs``, with those that their other fields imply."""
    found = [package for each in programs for package in each.packages]
    if any(each.archive for each in programs):
        found += artefact.PACKAGES
    if any(each.python for each in programs):
        found += python_environment.PACKAGES
    if any(each.source for each in programs):
        found.append(packages.PYTHON)
    if _proxied(programs):
        found.append("haproxy")
    return list(dict.fromkeys(found))


def _proxied(programs: Sequence[Program]) -> bool:
    return any(each.proxied or PROXY in each.command for each in programs)


def place(
    what: str,
    programs: Sequence[Program],
    files: Sequence[HostFile] = (),
    directories: Sequence[HostDirectory] = (),
    absent: Sequence[str] = (),
) -> None:
    """Place all that ``programs`` run and read, ``files`` and ``directories`` beside it, and remove
    ``absent``.
    """
    folders = [
        HostDirectory(path, mode="700", user=each.service.user, group=each.service.user)
        for each in programs
        for path in each.folders
    ]
    host_files.place(
        name=f"Write the files of {what}",
        directories=[
            host_files.CONFIGURATION,
            host_files.CREDENTIALS,
            *dict.fromkeys(folders),
            *directories,
        ],
        files=[*placed(programs), *files],
        absent=list(absent),
    )


def settle(
    name: str, programs: Sequence[Program], together: bool = False, wait: bool = True
) -> None:
    """Have the units of ``programs`` as declared; the rest is as in `operations.units.settle`."""
    units.settle(name=name, units=settled(programs), together=together, wait=wait)


def placed(programs: Sequence[Program]) -> list[HostFile]:
    """Every file of ``programs`` as it should be, once, and of the unit that records alerts.

    Raises:
        LookupError: a secret that a credential is made of is not set.
    """
    credentials = [
        HostFile(credential.path, credential.text(require), mode="600")
        for program in programs
        for credential in program.credentials
    ]
    sources = [host_files.program(program.source) for program in programs if program.source]
    written = [
        HostFile(file.path, file.text, mode=file.mode, validate=file.validate)
        for file in service.files([alerts.NOTIFY, *programs] if programs else [])
    ]
    return list(dict.fromkeys([*sources, *credentials, *written]))


def settled(programs: Sequence[Program]) -> list[Unit]:
    """Every unit of ``programs`` as it should be, in their order."""
    found = [unit for program in programs for unit in _units(program)]
    return [*([units.NO_OTHER_PROXY] if _proxied(programs) else []), *found]


def _units(program: Program) -> Iterator[Unit]:
    if program.is_template:
        # Other units start its instances.
        return
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
        changed = [program.path("timer"), program.path("service"), *program.reads]
        armed = program.timer.armed
        yield Unit(f"{program.stem}.timer", enabled=armed, running=armed, restart_after=changed)
        if program.at_boot:
            yield Unit(program.unit, running=None)
    elif program.kind == "oneshot" and not program.at_boot:
        # Another unit starts it; systemd must read it again when it changes.
        yield Unit(program.unit, enabled=None, running=None)
    elif program.ends:
        # The next boot starts it.
        yield Unit(program.unit, running=False)
    else:
        yield Unit(
            program.unit,
            enabled=is_open,
            running=is_open,
            restart_after=program.restart_after,
            reload=bool(program.reload),
            along_with=list(program.along_with),
        )
    for proxy in proxies(program):
        yield from _units(proxy)
