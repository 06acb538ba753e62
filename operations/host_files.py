"""Place files on a host: many in one operation, one remote command if nothing changes.

Content is sent on standard input, so it is in no argv, no log and no temporary file that others can
read. A file is complete and has its mode before it gets its name.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Generator
from dataclasses import dataclass
from types import ModuleType

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts import places
from facts.host_files import PathStates
from holdfast.shipping import path_of, text_of


@dataclass(frozen=True)
class HostFile:
    """The wanted state of a file.

    Missing parents are created with mode 755. ``mode`` is octal ("644"). ``validate`` is a shell
    command in which ``{}`` stands for the new content's temporary path; the file is replaced only
    when it exits 0.
    """

    path: str
    content: str
    mode: str = "644"
    user: str = "root"
    group: str = "root"
    validate: str | None = None

    def __repr__(self) -> str:
        return f"HostFile({self.path!r})"


def program(module: ModuleType) -> HostFile:
    """The file of a program of `holdfast.host_programs` on the host. Every user may execute it,
    except a program without a ``#!`` line, which its own environment starts.
    """
    text = text_of(module)
    return HostFile(path_of(module), text, mode="755" if text.startswith("#!") else "644")


@dataclass(frozen=True)
class HostDirectory:
    """The wanted state of a directory; parents are created with mode 755."""

    path: str
    mode: str = "755"
    user: str = "root"
    group: str = "root"


CONFIGURATION = HostDirectory(places.CONFIGURATION)
"""Listed first, because it contains other paths."""
CREDENTIALS = HostDirectory(places.CREDENTIALS, mode="700")
"""The same, for what root alone may read."""


@operation()
def place(
    files: list[HostFile] | None = None,
    directories: list[HostDirectory] | None = None,
    absent: list[str] | None = None,
) -> Generator[StringCommand, None, None]:
    """Create directories and files as given, and remove the ``absent`` paths (files or links).

    For example::

        host_files.place(
            name="Write the units",
            files=[HostFile("/etc/systemd/system/photos.service", text)],
            directories=[HostDirectory("/etc/holdfast/photos", mode="700")],
            absent=["/etc/systemd/system/old.service"],
        )
    """
    files, directories, absent = files or [], directories or [], absent or []
    paths = [*(d.path for d in directories), *(f.path for f in files), *absent]
    states = host.get_fact(PathStates, paths=paths)

    for directory in directories:
        state = states.get(directory.path)
        wanted = ("directory", directory.mode, directory.user, directory.group)
        if state is None or (state.kind, state.mode, state.user, state.group) != wanted:
            path = shlex.quote(directory.path)
            yield StringCommand(
                f"umask 022 && mkdir -p {path} && chown {directory.user}:{directory.group} {path}"
                f" && chmod {directory.mode} {path}"
            )

    for file in files:
        state = states.get(file.path)
        content = file.content.encode()
        same_content = (
            state is not None
            and state.kind == "file"
            and state.sha256 == hashlib.sha256(content).hexdigest()
        )
        path = shlex.quote(file.path)
        own = f"chown {file.user}:{file.group} {{0}} && chmod {file.mode} {{0}}"
        if not same_content:
            temporary = shlex.quote(f"{file.path}.holdfast-new")
            validate = f" && ( {file.validate.replace('{}', temporary)} )" if file.validate else ""
            parent = shlex.quote(file.path.rpartition("/")[0] or "/")
            yield StringCommand(
                f"umask 022 && mkdir -p {parent}"
                f" && umask 077 && rm -f {temporary} && base64 -d > {temporary}"
                f" && {own.format(temporary)}{validate}"
                f" && mv -fT {temporary} {path} || {{ rm -f {temporary}; exit 1; }}",
                _stdin=base64.b64encode(content).decode(),
            )
        elif state is not None and (state.mode, state.user, state.group) != (
            file.mode,
            file.user,
            file.group,
        ):
            yield StringCommand(own.format(path))

    for gone in absent:
        if gone in states:
            yield StringCommand(f"rm -f {shlex.quote(gone)}")
