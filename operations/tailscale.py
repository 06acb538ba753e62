"""Join a tailnet and stay on it as declared; silent, and keyless, when nothing is to be done."""

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
"""Memory, not disk: the key is never written to one."""
STATE = "/var/lib/tailscale/tailscaled.state"
"""What tailscaled knows of itself, its keys among it."""

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
            # A power cut may leave it empty, and tailscaled then refuses to work at all.
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
    """Be a member called ``hostname``, with the declared tags, control server and DNS setting.

    The auth key is read, and needed, only when the host is not a member. Fails with one sentence
    when it is missing then, when the host is a member elsewhere, when the join fails, or when the
    control server grants other tags.
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
                f"tailnet.auth_key: the host is not a member yet and {settings.auth_key} is not"
                " set; have the control server make a key and put it into .env"
            )
            return
        yield StringCommand(_join_script(settings, hostname), _stdin=key.get_secret_value())
    if steps.connect:
        # Without flags it means "as you were"; with any, tailscale wants all of them repeated.
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
