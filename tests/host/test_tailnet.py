"""The tailnet: a member as declared, without telemetry, and without a trace of its join key."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from testinfra.host import Host

from facts import sections
from holdfast import tailnet_membership, tailnet_rules
from holdfast.settings import HostSettings, Tailnet
from holdfast.tailnet import VENDOR_CONTROL


@pytest.fixture(scope="module")
def tailnet(settings: HostSettings) -> Tailnet:
    if settings.tailnet is None:
        pytest.skip("this host is on no tailnet")
    return settings.tailnet


@pytest.fixture(scope="module")
def node(host: Host, tailnet: Tailnet) -> dict[str, Any]:
    """The daemon's `status` and `prefs`."""
    command = (
        'printf "%s\\n" "{\\"status\\":" "$(timeout 20 tailscale status --json --peers=false)"'
        ' ",\\"prefs\\":" "$(timeout 20 tailscale debug prefs)" "}"'
    )
    answer: dict[str, Any] = json.loads(host.check_output(command))
    return answer


def test_it_is_online_and_its_membership_holds(node: dict[str, Any]) -> None:
    me = node["status"]["Self"]
    assert node["status"]["BackendState"] == "Running"
    assert me["Online"], node["status"]["Health"]
    assert not me.get("Expired", False)


def test_its_node_key_expires_only_if_the_inventory_accepts_it(
    node: dict[str, Any], tailnet: Tailnet
) -> None:
    if not tailnet.key_may_expire:
        assert node["status"]["Self"].get("KeyExpiry") is None


def test_it_has_the_declared_name_tags_and_control_server(
    node: dict[str, Any], settings: HostSettings, tailnet: Tailnet
) -> None:
    me, preferences = node["status"]["Self"], node["prefs"]
    hostname = tailnet.hostname or settings.hostname
    assert me["DNSName"].split(".")[0] == hostname
    assert preferences["Hostname"] == hostname
    assert sorted(me.get("Tags") or []) == sorted(tailnet.tags)
    control = preferences["ControlURL"] or VENDOR_CONTROL
    assert control.rstrip("/") == (tailnet.control_server or VENDOR_CONTROL).rstrip("/")
    assert preferences["CorpDNS"] == tailnet.accept_dns


def test_it_has_an_address_of_each_family_on_its_interface(
    host: Host, node: dict[str, Any]
) -> None:
    interface = host.check_output("ip -oneline address show dev tailscale0")
    addresses = node["status"]["TailscaleIPs"]
    assert {":" in address for address in addresses} == {True, False}
    for address in addresses:
        assert f" {address}/" in interface


def test_ssh_on_the_tailnet_is_the_hardened_sshd(node: dict[str, Any]) -> None:
    assert not node["prefs"]["RunSSH"]
    assert not node["prefs"]["ShieldsUp"]


def test_the_running_daemon_sends_no_logs_and_has_the_declared_port(
    host: Host, tailnet: Tailnet
) -> None:
    environment, sockets = host.check_output(
        "tr '\\0' '\\n' < /proc/$(systemctl show --value -p MainPID tailscaled)/environ;"
        " echo ===; ss -Hulnp"
    ).split("===")
    assert "TS_NO_LOGS_NO_SUPPORT=true" in environment.splitlines()
    ports = {
        int(line.split()[3].rpartition(":")[2])
        for line in sockets.splitlines()
        if "tailscaled" in line
    }
    assert ports == {tailnet.port}


def test_the_daemon_starts_with_the_host(host: Host, tailnet: Tailnet) -> None:
    assert host.check_output("systemctl is-enabled tailscaled; systemctl is-active tailscaled") == (
        "enabled\nactive"
    )


@pytest.fixture(scope="module")
def rules(host: Host, tailnet: Tailnet) -> dict[str, list[str]]:
    """Our chains: in the kernel, in their file, and as that file loads in a network namespace."""
    listing = f"nft --stateless list table inet {tailnet_rules.TABLE}"
    shown = "systemctl show --property=Id,After,Before,UnitFileState,ActiveState,Result"
    questions = {
        "table": listing,
        "file": f"cat {tailnet_rules.RULES}",
        "as written": f"unshare --net sh -c 'nft --file {tailnet_rules.RULES} && {listing}'",
        "sshd": "sshd -T | sed -n 's/^port //p'",
        "units": f"{shown} {tailnet_rules.SERVICE} {tailnet_rules.TIMER} tailscaled.service",
    }
    done = host.run(f"PATH=$PATH:/usr/sbin:/sbin; {sections.probe(questions)}")
    return sections.answers(done.stdout.splitlines())


def test_the_kernel_has_the_tailnets_rules_untouched(
    rules: dict[str, list[str]], settings: HostSettings
) -> None:
    ssh = sorted(map(int, rules["sshd"]))
    assert rules["file"] == tailnet_rules.rules(settings, ssh).splitlines()
    assert rules["as written"]
    assert rules["table"] == rules["as written"]


def test_those_rules_come_before_tailscaled_at_boot_and_are_watched(
    rules: dict[str, list[str]],
) -> None:
    units = {}
    for block in "\n".join(rules["units"]).split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        units[values["Id"]] = values
    for unit in units.values():
        assert (unit["UnitFileState"], unit["ActiveState"]) == ("enabled", "active"), unit
    assert units[tailnet_rules.SERVICE]["Result"] == "success"
    assert "network-pre.target" in units[tailnet_rules.SERVICE]["Before"].split()
    assert "network-pre.target" in units["tailscaled.service"]["After"].split()


def test_ssh_returns_to_the_lan_as_declared_when_membership_is_lost(
    host: Host, settings: HostSettings, tailnet: Tailnet
) -> None:
    questions = {
        "config": f"cat {tailnet_membership.CONFIG}",
        "timer": f"systemctl is-enabled {tailnet_membership.TIMER};"
        f" systemctl is-active {tailnet_membership.TIMER}",
        "last": f"systemctl show --property=Result --value {tailnet_membership.SERVICE}",
    }
    found = sections.answers(host.run(sections.probe(questions)).stdout.splitlines())
    assert found["config"] == tailnet_membership.config(settings).splitlines()
    assert found["timer"] == ["enabled", "active"]
    assert found["last"] == ["success"]


# The prefixes of Tailscale's and headscale's join keys, followed by enough characters for a key.
_KEY = r"(tskey-auth-|hskey-auth-)[A-Za-z0-9_-]{12,}"


def test_the_join_key_is_nowhere(host: Host, tailnet: Tailnet) -> None:
    found = host.run(
        f"""
        ls -d /run/holdfast-join.* 2>/dev/null
        cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -aoE '{_KEY}'
        journalctl --quiet --no-pager --output=cat | grep -aoE '{_KEY}'
        grep -rlE '{_KEY}' /etc /root /run /tmp /var/tmp /var/lib/holdfast 2>/dev/null
        true"""
    ).stdout
    # A looser pattern would match this very command in sudo's journal.
    assert not re.search(r"\S", found), found
