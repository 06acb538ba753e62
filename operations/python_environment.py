"""Install a locked Python environment: every package by version and hash, beside the one before.

An environment has the checksum of its lock for a name, so a unit that names it is rewritten, and
restarted, when the lock changes; the one before is kept for a quick way back.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Generator
from urllib.parse import urlsplit

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.artefacts import MARKER, InstalledVersion, InstalledVersions
from facts.places import PROGRAMS
from holdfast.python_environment import UV_LOCK, digest, directory
from holdfast.render import render

PACKAGES = ["ca-certificates", "python3", "python3-venv"]
"""Distribution packages that must be on the host before `installed` runs."""


@operation()
def installed(
    program: str, lock: str, distribution: str, index: str | None = None
) -> Generator[StringCommand, None, None]:
    """Have what ``lock`` pins in ``/opt/holdfast/<program>/<checksum>``, owned by root.

    ``lock`` is the text of requirements with hashes, ``index`` the URL of a package index in place
    of PyPI's; it is believed no further than the hashes go. The interpreter is the distribution's.
    """
    versions: list[InstalledVersion] = host.get_fact(InstalledVersions, program=program)
    wanted = digest(lock, distribution)
    if any(version.sha256 == wanted for version in versions):
        return
    script = render(
        "python_environment/install.sh.j2",
        target=directory(program, lock, distribution),
        digest=wanted,
        marker=MARKER,
        uv_lock=UV_LOCK.read_text(),
        index=index,
        mirror=urlsplit(index).netloc if index else None,
    )
    packed = base64.b64encode(lock.encode()).decode()
    yield StringCommand(f"base64 -d | sh -c {shlex.quote(script)}", _stdin=packed)


@operation()
def pruned(program: str, lock: str, distribution: str) -> Generator[StringCommand, None, None]:
    """Remove all environments of ``program`` but that of ``lock`` and the newest of the others.

    For the end of a deploy: until then units may still run from an older one.
    """
    versions: list[InstalledVersion] = host.get_fact(InstalledVersions, program=program)
    wanted = digest(lock, distribution)
    others = [version for version in versions if version.sha256 != wanted]
    for stale in others[:-1]:
        yield StringCommand(f"rm -rf {shlex.quote(f'{PROGRAMS}/{program}/{stale.version}')}")
