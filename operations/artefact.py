"""Install a pinned download: fetch it, verify its checksum, unpack it beside the target, rename it.

Each version has its own directory. So a new version changes the unit that names it, and the unit
restarts. The previous version is kept for a quick return; older ones are removed.
"""

from __future__ import annotations

import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.artefacts import MARKER, InstalledVersion, InstalledVersions
from facts.places import PROGRAMS
from holdfast.artefact import Unpack, directory
from holdfast.settings import Artefact

PACKAGES = ["bzip2", "ca-certificates", "curl"]
"""Distribution packages that must be on the host before `installed` runs."""

CURL = (
    "curl --fail --silent --show-error --location --proto '=http,https' --connect-timeout 20"
    " --retry 3 --speed-limit 1024 --speed-time 60"
)
"""A download with limits: it fails on an HTTP error, and gives up after a minute below 1 KiB/s."""


def _unpack_command(unpack: Unpack, file: str | None, strip_components: int) -> str:
    if unpack in ("tar.gz", "tar.bz2"):
        flag = "z" if unpack == "tar.gz" else "j"
        return (
            f'tar -x{flag}f "$work/download" -C "$work/tree" --no-same-owner'
            f" --strip-components={strip_components}"
        )
    if file is None:
        raise ValueError(f"unpack={unpack!r} yields one file; name it with file=")
    target = f'"$work/tree/"{shlex.quote(file)}'
    if unpack == "bz2":
        return f'bzip2 -dc "$work/download" > {target} && chmod 755 {target}'
    return f'mv "$work/download" {target} && chmod 755 {target}'


def _install_script(program: str, artefact: Artefact, unpack: str) -> str:
    parent, target = f"{PROGRAMS}/{program}", directory(program, artefact)
    refusal = shlex.quote(
        f"{program} {artefact.version}: {artefact.url} has sha256 %s but the inventory"
        f" declares {artefact.sha256}; nothing was installed\\n"
    )
    return "\n".join(
        [
            "set -eu; umask 022",
            f"mkdir -p {parent}",
            # Beside the target, so that the last step is a rename within one file system.
            f"work=$(mktemp -d {parent}/.new.XXXXXX)",
            "trap 'rm -rf \"$work\"' EXIT",
            f'{CURL} --output "$work/download" {shlex.quote(artefact.url)}',
            'got=$(sha256sum < "$work/download" | cut -c1-64)',
            f'[ "$got" = {artefact.sha256} ] || {{ printf {refusal} "$got" >&2; exit 1; }}',
            'mkdir "$work/tree"',
            unpack,
            'chmod -R u=rwX,go=rX "$work/tree"',
            f'echo {artefact.sha256} > "$work/tree/{MARKER}"',
            f'sync -f "$work/tree"; rm -rf {target}; mv -T "$work/tree" {target}',
        ]
    )


@operation()
def installed(
    program: str,
    artefact: Artefact,
    unpack: Unpack = "none",
    file: str | None = None,
    strip_components: int = 0,
) -> Generator[StringCommand, None, None]:
    """Unpack ``artefact`` in ``/opt/holdfast/<program>/<version>``, owned by root.

    ``tar.gz`` and ``tar.bz2`` unpack an archive without ``strip_components`` leading folders;
    ``bz2`` and ``none`` create one executable, ``file``. The host needs `PACKAGES`.

    Raises:
        ValueError: ``file`` is missing for ``bz2`` or ``none``.

    For example::

        artefact.installed(
            name="Install llama.cpp",
            program="llama.cpp",
            artefact=settings.floor.release,
            unpack="tar.gz",
            strip_components=1,
        )
    """
    versions: list[InstalledVersion] = host.get_fact(InstalledVersions, program=program)
    others = [version for version in versions if version.version != artefact.version]
    present = any(
        (version.version, version.sha256) == (artefact.version, artefact.sha256)
        for version in versions
    )
    if not present:
        unpack_command = _unpack_command(unpack, file, strip_components)
        yield StringCommand(_install_script(program, artefact, unpack_command))
    for stale in others[:-1]:
        yield StringCommand(f"rm -rf {shlex.quote(f'{PROGRAMS}/{program}/{stale.version}')}")
