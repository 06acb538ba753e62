"""The units, proxies and files that follow from a program's declaration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from facts.places import SYSTEM
from holdfast import doors
from holdfast.doors import Door
from holdfast.render import render
from holdfast.service.program import ON_FAILURE, PROXY, PROXY_FILES, File, Program, Words
from holdfast.settings import Service


def _quoted(word: str) -> str:
    """A word, quoted for systemd."""
    if word and not re.search(r"[\s'\"\\;]", word):
        return word
    escaped = word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _line(words: Words) -> str:
    return " ".join(map(_quoted, words))


def service_unit(program: Program) -> str:
    """The text of a program's service unit."""
    return render(
        "service/program.service.j2",
        program=program,
        before=[_line(words) for words in program.before],
        command=_line(program.command),
        ready=[_line(words) for words in program.ready],
        stop=_line(program.stop),
        after=[_line(words) for words in program.after],
        then=[_line(words) for words in program.then],
        reload=_line(program.reload),
        environment=[_quoted(f"{name}={value}") for name, value in program.environment.items()],
        on_failure=ON_FAILURE,
        sandbox=program.sandbox(),
    )


def _socket_unit(program: Program) -> str:
    if isinstance(program.socket, Door):
        return doors.socket_unit(program.socket)
    return render(
        "service/unix.socket.j2",
        description=program.description,
        unit=program.unit,
        socket=program.socket,
    )


def proxies(program: Program) -> Iterator[Program]:
    """The proxies that forward requests from each of a program's doors to its socket."""
    proxied = program.proxied
    if proxied is None:
        return
    for door in proxied.doors:
        configuration = proxied.configuration_of(door)
        text = render(
            "service/door.cfg.j2",
            posted=proxied.posted,
            read=[*proxied.read, *(proxied.read_here if door.name == "loopback" else ())],
            socket=proxied.socket,
            admin=door.admin if proxied.may_be_held else "",
            patience=doors.PATIENCE,
        )
        yield Program(
            service=Service(
                name=door.name,
                unit=door.service,
                user=program.service.user,
                tier=program.service.tier,
            ),
            description=f"Holdfast: proxy from {door.interface} to {door.program}",
            command=(PROXY, "-db", "-f", configuration),
            files=(File(configuration, text),),
            runtime=f"holdfast/{door.stem}",
            restart="on-failure",
            tuned=(PROXY_FILES,),
            isolated=True,
            socket=door,
        )


def _files(program: Program) -> Iterator[File]:
    yield File(program.path("service"), service_unit(program))
    if program.socket:
        yield File(program.path("socket"), _socket_unit(program))
    if program.timer:
        text = render("service/program.timer.j2", program=program, timer=program.timer)
        yield File(program.path("timer"), text)
    if program.slice:
        text = render("service/program.slice.j2", slice=program.slice)
        yield File(f"{SYSTEM}/{program.slice.name}", text)
    yield from program.files
    for proxy in proxies(program):
        yield from _files(proxy)


def files(programs: Iterable[Program]) -> list[File]:
    """Every file of the programs and their proxies, once, without credentials and `source`."""
    return list(dict.fromkeys(file for program in programs for file in _files(program)))


def texts(programs: Iterable[Program]) -> dict[str, str]:
    """Path to text of the same files."""
    return {file.path: file.text for file in files(programs)}


def paths(programs: Iterable[Program]) -> list[str]:
    """The paths of the same files, and of the programs' credentials."""
    programs = list(programs)
    secret = [credential.path for program in programs for credential in program.credentials]
    return list(dict.fromkeys([*texts(programs), *secret]))
