"""The machine behind a name or an address, as far as the inventory shows it."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.checks.finding import canonical, is_loopback_name
from holdfast.settings import HostSettings

Hosts = Mapping[str, HostSettings]


def names_of(host: str, settings: HostSettings) -> set[str]:
    """Every name and address that the inventory gives to a host."""
    tailnet = settings.tailnet.hostname if settings.tailnet else None
    names = [host, settings.hostname, tailnet, settings.lan_address, settings.ssh_hostname]
    return {canonical(name) for name in names if name}


def machine_of(name: str, host: str, hosts: Hosts) -> str:
    """The machine that ``host`` reaches as ``name``: a host of the inventory, else its address or
    its name.
    """
    wanted = canonical(name)
    if wanted.endswith(".ts.net"):
        wanted = wanted.partition(".")[0]
    known = {
        canonical(key): canonical(address)
        for settings in (*hosts.values(), hosts[host])
        for key, address in settings.base.hosts.items()
    }
    found = known.get(wanted, wanted)
    if is_loopback_name(found):
        return host
    own = names_of(host, hosts[host])
    if {wanted, found} & own:
        return host
    for other, settings in hosts.items():
        if {wanted, found} & names_of(other, settings):
            return other
    return found


def is_same(one: str, other: str) -> bool:
    """Whether two machines of `machine_of` are one: ``nas`` may be short for ``nas.home.arpa``."""
    short, long = sorted((one, other), key=len)
    return one == other or ("." not in short and ":" not in short and long.startswith(f"{short}."))
