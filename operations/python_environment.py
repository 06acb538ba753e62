"""Install a locked Python environment: every package by version and hash, beside the previous one.

The name of an environment is the checksum of its lock. So a new lock changes the unit that names
it, and the unit restarts. The previous environment is kept for a quick return.
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
    """Install the packages of ``lock`` in ``/opt/holdfast/<program>/<checksum>``, owned by root.

    ``lock`` is the text of requirements with hashes, ``index`` the URL of a package index in place
    of PyPI; the hashes verify its files. The interpreter is the distribution's.

    For example::

        python_environment.installed(
            name="Install LiteLLM", program="litellm", lock=lock, distribution="debian13"
        )
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
    """Remove all environments of ``program`` except that of ``lock`` and the newest other one. Use
    it at the end of a deploy: until then units may run from an older one.

    For example::

        python_environment.pruned(
            name="Keep one older environment", program="litellm", lock=lock, distribution="debian13"
        )
    """
    versions: list[InstalledVersion] = host.get_fact(InstalledVersions, program=program)
    wanted = digest(lock, distribution)
    others = [version for version in versions if version.sha256 != wanted]
    for stale in others[:-1]:
        yield StringCommand(f"rm -rf {shlex.quote(f'{PROGRAMS}/{program}/{stale.version}')}")
