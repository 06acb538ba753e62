"""Parse an inventory into typed settings, and check every host before any connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pydantic import ValidationError

from holdfast import secrets
from holdfast.checks import check_host, check_secrets, check_site
from holdfast.refusal import Refusal, Refused
from holdfast.settings import HostSettings
from holdfast.wording import refusals_from

if TYPE_CHECKING:
    from pyinfra.api.host import Host
    from pyinfra.api.inventory import Inventory

_parsed: WeakKeyDictionary[Inventory, dict[str, HostSettings]] = WeakKeyDictionary()


def parse(data: dict[str, dict[str, Any]]) -> dict[str, HostSettings]:
    """Host name to settings, from host name to inventory data.

    Raises:
        Refused: with every refusal found, over all hosts. No secret is in it.
    """
    known_secrets = secrets.known_values()
    refusals: list[Refusal] = []
    if problem := secrets.env_problem():
        wrong, _, mend = problem.partition("; ")
        refusals.append(
            Refusal("inventory", "secrets", str(secrets.folder() / ".env"), wrong, mend)
        )
    hosts: dict[str, HostSettings] = {}
    for name, values in data.items():
        try:
            hosts[name] = HostSettings.model_validate(values)
        except ValidationError as error:
            refusals += refusals_from(name, error, HostSettings, known_secrets)
    for name, settings in hosts.items():
        refusals += check_host(name, hosts, set(data))
        if not problem:
            refusals += check_secrets(name, settings)
    refusals += check_site(hosts)
    if refusals:
        raise Refused(refusals)
    return hosts


def load(inventory: Inventory) -> dict[str, HostSettings]:
    """Settings of every host of a pyinfra inventory, parsed once.

    Raises:
        Refused: the inventory cannot work as it is written.
    """
    if inventory not in _parsed:
        _parsed[inventory] = parse({host.name: _data(host) for host in inventory})
    return _parsed[inventory]


def _data(host: Host) -> dict[str, Any]:
    data: dict[str, Any] = host.data.dict()  # type: ignore[no-untyped-call]
    # The script of pyinfra's fake connector is no setting of a host.
    return {key: value for key, value in data.items() if not key.startswith("fake_")}


def settings_of(host: Host) -> HostSettings:
    """The settings of the current host of the running deploy."""
    return load(host.inventory)[host.name]
