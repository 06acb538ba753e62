"""What tenants run from: images by digest, and what is left of tenants that have gone."""

from __future__ import annotations

import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.places import PROGRAMS
from facts.tenants import RECORD, SourcesState, TenantSources


@operation()
def pulled(images: list[str]) -> Generator[StringCommand, None, None]:
    """Have these images on the host.

    For example::

        tenants.pulled(name="Pull the images", images=["ghcr.io/example/photos@sha256:9f86d0..."])
    """
    state: SourcesState = host.get_fact(TenantSources, wanted=images)
    for image in images:
        if image not in state.present:
            quoted = shlex.quote(image)
            # Recorded first: an image without a record would never be removed.
            yield StringCommand(
                f"mkdir -p {RECORD.rpartition('/')[0]} && echo {quoted} >> {RECORD}"
                f" && docker pull --quiet {quoted}"
            )


@operation()
def pruned(images: list[str], environments: list[str]) -> Generator[StringCommand, None, None]:
    """Remove the images that Holdfast has pulled, and tenants' folders of Python environments, that
    are not among these. Use it when nothing runs from them any more.

    For example::

        tenants.pruned(name="Remove what no tenant uses", images=[], environments=[])
    """
    state: SourcesState = host.get_fact(TenantSources, wanted=[])
    stale = [image for image in state.recorded if image not in images]
    for image in map(shlex.quote, stale):
        # An image that a container of another owner uses stays.
        yield StringCommand(f"docker image rm {image} || docker info >/dev/null")
    if stale:
        kept = "".join(f"{image}\n" for image in state.recorded if image in images)
        yield StringCommand(f"cat > {RECORD}", _stdin=kept)
    for name in state.environments:
        if name not in environments:
            yield StringCommand(f"rm -rf {shlex.quote(f'{PROGRAMS}/{name}')}")
