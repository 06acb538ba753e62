"""Add a signed APT repository: key, source and package lists.

The key and the lists are fetched before the source gets its name, so an existing source works. An
interrupted run can be repeated.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.host_files import PathStates
from holdfast.render import render
from holdfast.settings import AptRepository


def key_path(label: str, settings: AptRepository) -> str:
    """Path of the key: apt distinguishes an armoured key from a binary one by the file's suffix."""
    suffix = "gpg" if settings.key_url.endswith(".gpg") else "asc"
    return f"/etc/apt/keyrings/{label}.{suffix}"


def source_path(label: str) -> str:
    """The deb822 file that names the repository."""
    return f"/etc/apt/sources.list.d/{label}.sources"


@operation()
def repository(label: str, settings: AptRepository) -> Generator[StringCommand, None, None]:
    """Add the repository ``settings`` to apt, with the file name ``label``. One remote command if
    it is there. The host fetches the key itself, with apt's own client and proxy. A key whose URL
    ends in ``.gpg`` must be binary, any other armoured.

    Fails if the key cannot be fetched, is not the pinned one or is of the other kind, or if the
    repository's lists cannot be fetched or are not signed with that key.

    For example::

        apt_repository.repository(
            name="Know Docker's repository", label="docker", settings=settings.docker.repository
        )
    """
    key, source = key_path(label, settings), source_path(label)
    content = render("apt/repository.sources.j2", repository=settings, key=key)
    states = host.get_fact(PathStates, paths=[key, source])

    known_key = states[key].sha256 if key in states else None
    key_is_good = known_key is not None and settings.key_sha256 in (None, known_key)
    if not key_is_good:
        yield StringCommand(_fetch_key(key, settings))

    wanted = hashlib.sha256(content.encode()).hexdigest()
    if not key_is_good or source not in states or states[source].sha256 != wanted:
        yield StringCommand(_fetch_lists(source), _stdin=content)


def _fetch_key(key: str, settings: AptRepository) -> str:
    digest = f" SHA256:{settings.key_sha256}" if settings.key_sha256 else ""
    armoured = key.endswith(".asc")
    mend = (
        "is not armoured: use a URL that ends in .gpg"
        if armoured
        else "is not binary: use a URL that ends in .asc"
    )
    # apt-helper is part of apt: a bare machine has neither curl nor wget.
    return (
        f"new={key}.holdfast-new; install -d -m 755 /etc/apt/keyrings && rm -f $new"
        f" && /usr/lib/apt/apt-helper -q download-file {shlex.quote(settings.key_url)} $new{digest}"
        f" && {{ test \"$(head -c 5 $new | tr -d '\\0')\" {'=' if armoured else '!='} -----"
        f" || {{ echo {shlex.quote(f'The key at {settings.key_url} {mend}.')} >&2; false; }}; }}"
        f" && chmod 644 $new && mv -fT $new {key} || {{ rm -f $new $new.FAILED; exit 1; }}"
    )


def _fetch_lists(source: str) -> str:
    new = f"/etc/apt/{source.rsplit('/', 1)[1]}"
    return (
        f"umask 022; cat > {new} && apt-get -q update --error-on=any"
        f" -o Dir::Etc::SourceList={new} -o Dir::Etc::SourceParts=/dev/null"
        f" -o APT::Get::List-Cleanup=0"
        f" && mv -fT {new} {source} || {{ rm -f {new}; exit 1; }}"
    )
