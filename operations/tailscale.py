"""Join a tailnet and keep the membership as declared; without a change no key is read."""

from __future__ import annotations

import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import FunctionCommand, StringCommand, operation

from facts.tailnet import TailnetNode
from holdfast import secrets
from holdfast.settings import Tailnet
from holdfast.tailnet import complaint, join_flags, plan, relays_missing
from operations.refusal import stop

RUN = "/run"
"""In memory: the key is never written to a disk."""
STATE = "/var/lib/tailscale/tailscaled.state"
"""The state of tailscaled, with its keys."""

# `up` returns when the daemon runs; the control server sees it online a moment later.
_UNTIL_ONLINE = (
    'timeout 30 sh -c \'until tailscale status --json --peers=false | grep -q "Online.: true";'
    " do sleep 1; done' || true"
)


def _join_script(settings: Tailnet, hostname: str) -> str:
    flags = shlex.join(join_flags(settings, hostname))
    seconds = settings.join_timeout_seconds
    return "\n".join(
        [
            "set -eu; umask 077",
            f"directory=$(mktemp -d {RUN}/holdfast-join.XXXXXX)",
            "trap 'rm -rf \"$directory\"' EXIT; trap 'exit 1' HUP INT TERM",
            # A power cut may leave it empty, and then tailscaled does not start.
            f"if [ -e {STATE} ] && [ ! -s {STATE} ]; then"
            f" systemctl stop tailscaled; rm {STATE}; systemctl start tailscaled; fi",
            'cat > "$directory/key"',
            f'timeout {seconds + 30} tailscale up {flags} --auth-key="file:$directory/key"'
            f" --timeout={seconds}s",
            _UNTIL_ONLINE,
        ]
    )


@operation()
def joined(
    settings: Tailnet, hostname: str
) -> Generator[StringCommand | FunctionCommand, None, None]:
    """Join as ``hostname``, with the declared tags, control server and DNS setting. The auth key is
    read only if the host is not a member. Fails with one sentence if the key is missing then, if
    the host is a member of another tailnet, if the join fails, or if the control server grants
    other tags.

    For example::

        tailscale.joined(name="Join the tailnet", settings=settings.tailnet, hostname="rack")
    """
    node = host.get_fact(TailnetNode)
    steps = plan(settings, hostname, node)
    if steps.refusal:
        yield stop(steps.refusal)
        return
    if steps.join:
        key = secrets.read(settings.auth_key) if settings.auth_key else None
        if key is None:
            yield stop(
                f"tailnet.auth_key: the host is not a member yet and {settings.auth_key} is"
                " not set; create a key at the control server and put it into .env"
            )
            return
        yield StringCommand(_join_script(settings, hostname), _stdin=key.get_secret_value())
    if steps.connect:
        # Without flags it keeps all settings; with one flag, tailscale requires all of them.
        yield StringCommand(
            f"timeout {settings.join_timeout_seconds} tailscale up && {_UNTIL_ONLINE}"
        )
    if steps.change:
        yield StringCommand(f"tailscale set {shlex.join(steps.change)}")
    if steps.request_tags:
        flags = shlex.join(join_flags(settings, hostname))
        yield StringCommand(
            f"tailscale up {flags} --timeout={settings.join_timeout_seconds}s && {_UNTIL_ONLINE}"
        )
    changed = steps.join or steps.connect or bool(steps.change) or steps.request_tags
    if changed:
        node = host.get_fact(TailnetNode)
    if sentence := complaint(settings, hostname, node, steps.join or steps.connect):
        yield stop(sentence)
    elif sentence := relays_missing(settings, node):
        yield stop(f"tailnet.relays: {sentence}")
