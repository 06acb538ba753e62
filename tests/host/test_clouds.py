"""The program that asks clouds has its declared configuration, and only its router may call it."""

from __future__ import annotations

import re

import pytest
from testinfra.host import Host

from holdfast import clouds
from holdfast.python_environment import directory
from holdfast.routing import providers
from holdfast.settings import HostSettings, Router


@pytest.fixture(scope="module")
def routers(settings: HostSettings) -> list[Router]:
    found = [router for router in settings.routers if router.clouds]
    if not found:
        pytest.skip("no router of this host has a cloud")
    return found


def _unit(router: Router) -> str:
    return f"{clouds.stem(router)}.service"


def test_each_has_the_declared_configuration(
    host: Host, settings: HostSettings, routers: list[Router]
) -> None:
    for router in routers:
        told = host.check_output(f"cat {clouds.configuration_path(router)}")
        assert told.strip() == clouds.configuration(settings, router).strip()


def test_only_its_router_may_call_it(host: Host, routers: list[Router]) -> None:
    for router in routers:
        mode = host.check_output(f"stat --format='%a %U' {clouds.socket(router)}")
        assert mode == f"600 router-{router.name}"
        pid = host.check_output(f"systemctl show --property=MainPID --value {_unit(router)}")
        # It listens nowhere else.
        assert host.run(f"ss -Hltunp | grep 'pid={pid},'").stdout == ""


def test_its_keys_are_the_declared_clouds(
    host: Host, settings: HostSettings, routers: list[Router]
) -> None:
    for router in routers:
        path = clouds.key_file(router)
        names = host.check_output(f"python3 -c 'import json; print(*json.load(open(\"{path}\")))'")
        assert names.split() == [each.name for each in providers(settings, router)]


def test_no_variable_of_the_host_reaches_it(host: Host, routers: list[Router]) -> None:
    for router in routers:
        pid = host.check_output(f"systemctl show --property=MainPID --value {_unit(router)}")
        names = host.check_output(f"tr '\\0' '\\n' < /proc/{pid}/environ | sed 's/=.*//'").split()
        assert set(names) <= {
            *("CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "SSL_CERT_FILE"),
            *("LITELLM_MODE", "LITELLM_LOCAL_MODEL_COST_MAP", "LC_CTYPE"),
        }


def test_its_environment_is_the_pinned_one_and_only_root_can_write_it(
    host: Host, settings: HostSettings, routers: list[Router]
) -> None:
    lock = clouds.LOCK.read_text()
    folder = directory(clouds.LITELLM, lock, settings.distribution)
    assert host.check_output(f"find {folder} ! -user root -o -perm /022 ! -type l") == ""
    found = host.check_output(
        f"{folder}/bin/python -I -c 'from importlib.metadata import distributions;"
        ' [print(d.name.lower().replace("_", "-").replace(".", "-"), d.version)'
        " for d in distributions()]'"
    )
    pinned = {(name, version) for name, version in re.findall(r"^(\S+)==(\S+)", lock, re.MULTILINE)}
    installed = {tuple(line.split()) for line in found.splitlines()}
    assert ("litellm", dict(pinned)["litellm"]) in installed
    assert installed - pinned == set()
    # Python runs these lines at every start.
    assert host.check_output(f"find {folder} -name '*.pth' ! -name '_virtualenv.pth'") == ""
