"""The settings under ``ssh``.

For example::

    "ssh": {
        "authorised_keys": {
            "operator": [
                "ssh-ed25519"
                " AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f you@desk"
            ]
        },
        "lan_sources": ["192.168.1.0/24"],
        "callers": ["tag:operator", "alice@example.org"],
    }
"""

from __future__ import annotations

from typing import Literal

from holdfast.types import Caller, Cidr, Model, Port, PublicKey, UserName


class Ssh(Model):
    """Who may log in, and from where."""

    port: Port = 22
    root_login: Literal["never", "key"] = "never"
    authorised_keys: dict[UserName, list[PublicKey]] = {}
    """User to the only keys that may log in as that user. They are in root's `/etc/holdfast/ssh`,
    and sshd ignores the user's `~/.ssh/authorized_keys`. A user that is not named is not
    changed."""
    lan_access: Literal["until-tailnet", "keep"] = "until-tailnet"
    """``until-tailnet`` closes SSH on the LAN after a login over the tailnet has succeeded."""
    lan_return: bool = True
    """Whether the host opens SSH to ``lan_sources`` again while it has lost its tailnet
    (``tailnet.lost_minutes``). False: the console is then the only way in."""
    lan_sources: list[Cidr] = []
    """Networks that may reach SSH while it is open on the LAN; empty means any."""
    callers: list[Caller] = []
    """Who may log in over the tailnet; empty: every member with a key."""
    tcp_forwarding: Literal["no", "local", "yes"] = "local"
    """What a login may tunnel. ``local``, as ``ssh -L`` and jumping need it, lets an operator reach
    a loopback service, and a training tool its job. It gives a user no more access than a shell."""
