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
    """The private network that is the only way in."""

    hostname: HostLabel | None = None
    """Defaults to the host's name."""
    repository: AptRepository | None = None
    """A mirror of the vendor's repository."""
    control_server: Url | None = None
    """A headscale; Tailscale's own when absent."""
    relays: list[Cloud] = []
    """Where the relays (DERP) of a ``control_server`` answer, beside that server itself."""
    auth_key: SecretName | None = "TAILSCALE_AUTH_KEY"
    """Joins the host, once. None: it is a member already, and is refused where it is not."""
    tags: list[Tag] = []
    """What it is to the tailnet's policy; hosts of one tag are one."""
    other_tags: list[Tag] = []
    """Tags of machines that are no hosts of this inventory, for ``callers`` to name."""
    groups: dict[TailnetGroup, list[TailnetUser]] = {}
    """Groups for ``callers`` to name, and who is in each. Like ``other_tags`` they hold for all
    hosts of the inventory, wherever they are declared."""
    key_may_expire: bool = False
    """Whether SSH may leave the LAN although the host's node key ends one day. An operator must
    then renew it in time."""
    key_warning_days: int = Field(default=14, ge=1, le=180)
    """How long before the end of its node key a host raises an alert, days."""
    lost_minutes: int = Field(default=30, ge=1, le=1440)
    """How long a host must be no member before it raises an alert and opens SSH on the LAN again,
    and a member before it closes it, minutes."""
    port: Port = 41641
    join_timeout_seconds: int = Field(default=60, ge=10, le=600)
    accept_dns: bool = True
