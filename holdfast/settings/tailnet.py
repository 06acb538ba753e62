"""The settings under ``tailnet``.

For example::

    "tailnet": {
        "control_server": "https://headscale.home.arpa",
        "relays": [{"name": "relay.home.arpa", "port": 8443}],
        "tags": ["tag:rack"],
        "other_tags": ["tag:operator"],
        "groups": {"group:family": ["alice@example.org", "bob@example.org"]},
    }
"""

from __future__ import annotations

from pydantic import Field

from holdfast.settings.egress import Cloud
from holdfast.settings.sources import AptRepository
from holdfast.types import HostLabel, Model, Port, SecretName, Tag, TailnetGroup, TailnetUser, Url


class Tailnet(Model):
    """The private network, the only way to log in."""

    hostname: HostLabel | None = None
    """Default: the host's name."""
    repository: AptRepository | None = None
    """A mirror of the vendor's repository."""
    control_server: Url | None = None
    """A headscale; default: Tailscale's own."""
    relays: list[Cloud] = []
    """Addresses of the relays (DERP) of a ``control_server``, besides that server itself."""
    auth_key: SecretName | None = "TAILSCALE_AUTH_KEY"
    """Joins the host, once. None: the host must be a member already, else it is refused."""
    tags: list[Tag] = []
    """Its identity in the tailnet's policy, which cannot distinguish hosts with the same tags."""
    other_tags: list[Tag] = []
    """Tags of machines outside this inventory, for use in ``callers``."""
    groups: dict[TailnetGroup, list[TailnetUser]] = {}
    """Groups for use in ``callers``, with their members. Like ``other_tags`` they apply to all
    hosts of the inventory."""
    key_may_expire: bool = False
    """Whether SSH may close on the LAN although the host's node key has an expiry. An operator must
    then renew the key in time."""
    key_warning_days: int = Field(default=14, ge=1, le=180)
    """The host raises an alert this long before its node key ends, days."""
    lost_minutes: int = Field(default=30, ge=1, le=1440)
    """After this long without membership the host raises an alert and opens SSH on the LAN; after
    this long as a member it closes it, minutes."""
    port: Port = 41641
    join_timeout_seconds: int = Field(default=60, ge=10, le=600)
    accept_dns: bool = True
