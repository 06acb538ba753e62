"""Tests of a host, for the drill's machine and for users' own: `holdfast verify INVENTORY`.

pytest gets an inventory. Every test runs once for each of its hosts, over the same SSH
configuration as pyinfra, and with sudo if the inventory sets it.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from facts.framed import Unanswered
from holdfast import inventory_file
from holdfast.connector import NEEDED, UNFIT
from holdfast.refusal import Refused
from holdfast.settings import HostSettings


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--inventory",
        default=os.environ.get("INVENTORY", ""),
        help="pyinfra inventory whose hosts are checked",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "host_name" in metafunc.fixturenames:
        metafunc.parametrize("host_name", sorted(_inventory(metafunc.config)), scope="session")


@cache
def _load(path: str) -> dict[str, HostSettings]:
    return inventory_file.load(path)


def _inventory(config: pytest.Config) -> dict[str, HostSettings]:
    path = config.getoption("--inventory")
    if not path:
        raise pytest.UsageError("name an inventory: pytest tests/host --inventory inventories/x.py")
    try:
        return _load(path)
    except Refused as refused:
        raise pytest.UsageError("\n".join(map(str, refused.refusals))) from None


@pytest.fixture(scope="session")
def settings(host_name: str, request: pytest.FixtureRequest) -> HostSettings:
    """The settings of the host under test."""
    return _inventory(request.config)[host_name]


@pytest.fixture(scope="session")
def host(host_name: str, settings: HostSettings, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """The host under test, as root over one shared SSH connection."""
    address = settings.ssh_hostname or host_name
    login = f"{settings.ssh_user}@{address}" if settings.ssh_user else address
    sockets = tmp_path_factory.mktemp("ssh")
    # A master connection, because a handshake under emulation takes longer than the test.
    arguments = f"-o ControlMaster=auto -o ControlPersist=120 -o ControlPath={sockets}/%C"
    if settings.ssh_known_hosts_file:
        arguments += f" -o UserKnownHostsFile={settings.ssh_known_hosts_file}"
    options: dict[str, Any] = {"sudo": settings.sudo, "ssh_extra_args": arguments, "timeout": 60}
    if settings.ssh_config_file:
        options["ssh_config"] = settings.ssh_config_file
    if settings.ssh_key:
        options["ssh_identity_file"] = settings.ssh_key
    port = f":{settings.ssh_port}" if settings.ssh_port else ""
    # As in `facts.framed`: lines that a start file of the login prints are no part of an answer.
    url = f"safe-ssh://{login}{port}"
    _prove(host_name, settings, testinfra.get_host(url, **options | {"sudo": False}))
    return testinfra.get_host(url, **options)


def _prove(name: str, settings: HostSettings, login: Host) -> None:
    """End the run with one sentence if no test could run."""
    wanted = NEEDED if settings.sudo else NEEDED.partition("\n")[0]
    try:
        answer = login.run(wanted)
    except RuntimeError as error:
        pytest.exit(f"{name}: it did not answer: {error}", returncode=1)
    except ValueError:
        # testinfra found no frame around the answer.
        pytest.exit(f"{name}: {Unanswered()}.", returncode=1)
    if wrong := UNFIT.get(answer.rc):
        user = settings.ssh_user or "user"
        pytest.exit(f"{name}: {wrong.format(user=user)}.", returncode=1)
