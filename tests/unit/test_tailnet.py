"""Membership: the recorded node, the steps to the declared one, the sentences."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, get_args

import pytest
from pyinfra.api import FactProcessError
from pyinfra.context import ctx_host

from deploys import tailnet
from facts.tailnet import TailnetAddresses, TailnetNode
from holdfast.refusal import Refused
from holdfast.settings import Cloud, Distribution, HostSettings, Tailnet
from holdfast.tailnet import (
    Node,
    Steps,
    complaint,
    join_flags,
    keeps_lan_ssh,
    plan,
    relays_missing,
    vendor_repository,
)
from operations.tailscale import joined
from tests.unit.local_host import LocalHost
from tests.unit.recorded_facts import read, recorded
from tests.unit.site_data import good

RECORDED = Path(__file__).parent / "recorded"
HEADSCALE = Tailnet(control_server="https://localhost:28443", tags=["tag:rack"], accept_dns=False)
VENDOR = Tailnet(tags=["tag:rack", "tag:gpu"])


MEMBER: Node = read(TailnetNode)


def test_a_member_as_tailscale_1_102_prints_it() -> None:
    assert (
        Node(
            backend="Running",
            has_key=True,
            control_server="https://localhost:28443",
            hostname="rack",
            name="rack",
            tags=("tag:rack",),
            accept_dns=False,
            online=True,
            v4=IPv4Address("100.64.0.1"),
            v6=IPv6Address("fd7a:115c:a1e0::1"),
        )
        == MEMBER
    )


def _recorded(name: str) -> Node:
    node: Node = read(TailnetNode, (RECORDED / f"tailnet-{name}.txt").read_text().splitlines())
    return node


@pytest.mark.parametrize("name", ["expired", "logged-out", "no-state"])
def test_a_host_that_has_lost_its_tailnet_is_no_member(name: str) -> None:
    node = _recorded(name)
    assert not node.joined
    assert plan(HEADSCALE, "rack", node) == Steps(join=True)


def _with_expiry(text: str) -> Node:
    expiry = f'"Online": true, "KeyExpiry": "{text}"'
    node: Node = read(
        TailnetNode, [line.replace('"Online": true', expiry) for line in recorded(TailnetNode)]
    )
    return node


def test_the_end_of_a_node_key_is_read() -> None:
    assert _recorded("expired").expires == datetime(2026, 11, 30, 17, 35, 58, tzinfo=UTC)
    assert _with_expiry("2030-01-02T03:04:05Z").expires == datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    # How a control server may write "never".
    assert _with_expiry("0001-01-01T00:00:00Z").expires is None
    with pytest.raises(FactProcessError):
        _with_expiry("soon")


def test_ssh_stays_on_the_lan_while_the_node_key_ends_unless_the_inventory_accepts_it() -> None:
    ends = _with_expiry("2030-01-02T03:04:05Z")
    sentence = keeps_lan_ssh(HEADSCALE, ends)
    assert sentence is not None
    assert "expires on 2030-01-02" in sentence
    assert "key_may_expire" in sentence
    assert keeps_lan_ssh(Tailnet(key_may_expire=True), ends) is None
    assert keeps_lan_ssh(HEADSCALE, MEMBER) is None


def test_a_refused_host_is_no_member_and_says_why() -> None:
    node = _recorded("refused")
    assert not node.joined
    assert "not a member" in (complaint(HEADSCALE, "rack", node, changed=True) or "")


def test_no_daemon_is_an_empty_node() -> None:
    assert read(TailnetNode, ["-- preferences --"]) == Node()
    assert TailnetNode.default() == Node()


def test_what_is_not_json_is_no_answer() -> None:
    with pytest.raises(FactProcessError):
        read(TailnetNode, ["{}", "-- preferences --", "access denied"])


def test_addresses_of_both_families_or_none() -> None:
    both = read(TailnetAddresses, ["100.64.0.1", "fd7a:115c:a1e0::1"])
    assert (str(both.v4), str(both.v6)) == ("100.64.0.1", "fd7a:115c:a1e0::1")
    assert TailnetAddresses.default().v4 is None


AT_VENDOR = replace(
    MEMBER,
    control_server="https://controlplane.tailscale.com",
    tags=("tag:gpu", "tag:rack"),
    requested_tags=("tag:gpu", "tag:rack"),
    accept_dns=True,
)


@pytest.mark.parametrize(
    ("settings", "node", "steps"),
    [
        (HEADSCALE, MEMBER, Steps()),
        (HEADSCALE, Node(), Steps(join=True)),
        (HEADSCALE, replace(MEMBER, backend="NeedsLogin"), Steps(join=True)),
        (HEADSCALE, replace(MEMBER, expired=True), Steps(join=True)),
        (HEADSCALE, replace(MEMBER, backend="Stopped"), Steps(connect=True)),
        (HEADSCALE, replace(MEMBER, hostname="old"), Steps(change=("--hostname=rack",))),
        (HEADSCALE, replace(MEMBER, accept_dns=True), Steps(change=("--accept-dns=false",))),
        (HEADSCALE, replace(MEMBER, ssh=True), Steps(change=("--ssh=false",))),
        (HEADSCALE, replace(MEMBER, shields_up=True), Steps(change=("--shields-up=false",))),
        (HEADSCALE, replace(MEMBER, control_server="https://localhost:28443/"), Steps()),
        # A headscale decides tags by the key: a host's old request is left alone.
        (HEADSCALE, replace(MEMBER, requested_tags=("tag:x",)), Steps()),
        (VENDOR, AT_VENDOR, Steps()),
        (VENDOR, replace(AT_VENDOR, control_server=""), Steps()),
        (VENDOR, replace(AT_VENDOR, requested_tags=("tag:rack",)), Steps(request_tags=True)),
    ],
)
def test_steps(settings: Tailnet, node: Node, steps: Steps) -> None:
    assert plan(settings, "rack", node) == steps


def test_another_control_server_is_refused_in_one_sentence() -> None:
    steps = plan(VENDOR, "rack", MEMBER)
    assert steps.refusal is not None
    assert "https://localhost:28443" in steps.refusal
    assert "https://controlplane.tailscale.com" in steps.refusal
    assert steps == Steps(refusal=steps.refusal)


def test_only_the_vendor_is_asked_for_tags() -> None:
    assert "--advertise-tags=tag:gpu,tag:rack" in join_flags(VENDOR, "rack")
    assert not any("tags" in flag for flag in join_flags(HEADSCALE, "rack"))


@pytest.mark.parametrize(
    ("change", "after_change", "words"),
    [
        ({}, True, None),
        (
            {"tags": ()},
            False,
            "the host has no tags at the control server, but tag:rack in the inventory",
        ),
        ({"tags": ("tag:rack", "tag:admin")}, False, "tag:admin, tag:rack"),
        ({"online": False}, False, None),
        ({"online": False}, True, "does not see it online"),
        ({"name": "rack-1"}, False, None),
        ({"name": "rack-1"}, True, "name on the tailnet is rack-1, not rack"),
        ({"expired": True}, False, "not a member"),
        (
            {"backend": "Starting", "tags": (), "health": ("no answer from control",)},
            False,
            "stays in state Starting (no answer from control)",
        ),
    ],
)
def test_complaints(change: dict[str, Any], after_change: bool, words: str | None) -> None:
    sentence = complaint(HEADSCALE, "rack", replace(MEMBER, **change), after_change)
    assert (sentence is None) if words is None else (sentence is not None and words in sentence)


_RELAYS = """\
-- relays --
{"Regions": {"1": {"RegionID": 1, "Nodes": [
    {"Name": "1a", "HostName": "derp1.tailscale.com", "DERPPort": 0},
    {"Name": "1b", "HostName": "stun.tailscale.com", "STUNOnly": true}]},
  "999": {"RegionID": 999, "Nodes": [
    {"Name": "999a", "HostName": "localhost", "DERPPort": 28443},
    {"Name": "999b", "HostName": "derp.example", "DERPPort": 8443}]}}}
"""
OTHERS = ("derp1.tailscale.com:443", "derp.example:8443")


def test_the_relays_of_a_tailnet_are_read() -> None:
    lines = recorded(TailnetNode)
    node = read(TailnetNode, [*lines, *_RELAYS.splitlines()])
    expected = (("derp.example", 8443), ("derp1.tailscale.com", 443), ("localhost", 28443))
    assert node == replace(MEMBER, relays=expected)
    # A daemon that has no map yet says so in words.
    assert read(TailnetNode, [*lines, "-- relays --", "no DERP map"]) == MEMBER


def test_relays_that_tailscaled_is_kept_from_are_named() -> None:
    relays = (("derp.example", 8443), ("derp1.tailscale.com", 443), ("localhost", 28443))
    node = replace(MEMBER, relays=relays)
    sentence = relays_missing(HEADSCALE, node) or ""
    assert all(each in sentence for each in OTHERS)
    assert "localhost" not in sentence
    declared = {"relays": [Cloud(name="derp.example", port=8443)]}
    sentence = relays_missing(HEADSCALE.model_copy(update=declared), node) or ""
    assert "derp.example" not in sentence
    assert "derp1.tailscale.com:443" in sentence
    # Tailscale's own control server brings its own relays, and nothing is held.
    assert relays_missing(VENDOR, node) is None


def test_a_member_needs_no_key_and_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAILSCALE_AUTH_KEY", raising=False)
    here = LocalHost(facts={TailnetNode: MEMBER})
    assert here.planned(joined, settings=HEADSCALE, hostname="rack") == []


def test_a_host_that_must_join_without_a_key_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILSCALE_AUTH_KEY", "")
    monkeypatch.setenv("HOLDFAST_SECRETS", "/nonexistent")
    here = LocalHost(facts={TailnetNode: Node()})
    commands, failure = here.apply(joined, settings=HEADSCALE, hostname="rack")
    assert len(commands) == 1
    assert failure == (
        "tailnet.auth_key: the host is not a member yet and TAILSCALE_AUTH_KEY is not set;"
        " create a key at the control server and put it into .env"
    )


def test_without_a_key_a_host_must_be_a_member_before_anything_is_changed() -> None:
    rack = HostSettings.model_validate({**good()["rack"], "tailnet": {"auth_key": None}})
    stranger: Any = LocalHost(facts={TailnetNode: Node()})
    with ctx_host.use(stranger), pytest.raises(Refused, match="not a member of a tailnet yet"):
        tailnet.apply._inner(settings=rack)


def test_a_member_keeps_its_relays_before_anything_is_changed() -> None:
    own = {"control_server": MEMBER.control_server}
    rack = HostSettings.model_validate({**good()["rack"], "tailnet": own})
    node = replace(MEMBER, relays=(("derp1.tailscale.com", 443),))
    member: Any = LocalHost(facts={TailnetNode: node})
    with ctx_host.use(member), pytest.raises(Refused, match=r"tailnet\.relays.*derp1\.tailscale"):
        tailnet.apply._inner(settings=rack)


def test_a_host_that_has_joined_is_told_of_relays_it_is_kept_from() -> None:
    node = replace(MEMBER, relays=(("derp1.tailscale.com", 443),))
    here = LocalHost(facts={TailnetNode: node})
    _, failure = here.apply(joined, settings=HEADSCALE, hostname="rack")
    assert failure
    assert failure.startswith("tailnet.relays: the control server names relays")


@pytest.fixture
def fake_tailscale(tmp_path: Path) -> Path:
    """A `tailscale` that notes its arguments and the key it was pointed to, and fails."""
    programs = tmp_path / "bin"
    programs.mkdir()
    script = programs / "tailscale"
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/arguments\n'
        'for word in "$@"; do case $word in --auth-key=file:*)\n'
        f'  stat -c %a:%n "${{word#--auth-key=file:}}" > {tmp_path}/key-file\n'
        f'  cat "${{word#--auth-key=file:}}" > {tmp_path}/key-seen ;;\n'
        "esac; done\n"
        "echo 'backend error: invalid key' >&2; exit 1\n"
    )
    script.chmod(0o755)
    return programs


def test_the_key_is_a_private_file_that_is_gone_even_when_the_join_fails(
    fake_tailscale: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILSCALE_AUTH_KEY", "tskey-example")
    # /run is root's; the script is the same wherever it makes its directory.
    monkeypatch.setattr("operations.tailscale.RUN", str(tmp_path))
    here = LocalHost(programs=fake_tailscale, facts={TailnetNode: Node()})
    commands, failure = here.apply(joined, settings=HEADSCALE, hostname="rack")
    assert "invalid key" in failure
    assert not any("tskey-example" in command for command in commands)
    assert (tmp_path / "key-seen").read_text().strip() == "tskey-example"
    assert "tskey-example" not in (tmp_path / "arguments").read_text()
    mode, _, path = (tmp_path / "key-file").read_text().strip().partition(":")
    assert mode == "600"
    assert not Path(path).parent.exists()


@pytest.mark.parametrize(("state", "kept"), [("", False), ('{"_machinekey": ""}', True)])
def test_a_state_that_a_power_cut_left_empty_is_in_the_way_of_no_join(
    fake_tailscale: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, kept: bool
) -> None:
    monkeypatch.setenv("TAILSCALE_AUTH_KEY", "tskey-example")
    monkeypatch.setattr("operations.tailscale.RUN", str(tmp_path))
    file = tmp_path / "tailscaled.state"
    file.write_text(state)
    monkeypatch.setattr("operations.tailscale.STATE", str(file))
    calls = tmp_path / "systemctl-calls"
    systemctl = fake_tailscale / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    systemctl.chmod(0o755)
    LocalHost(programs=fake_tailscale, facts={TailnetNode: Node()}).apply(
        joined, settings=HEADSCALE, hostname="rack"
    )
    assert file.exists() == kept
    assert calls.exists() != kept
    assert (tmp_path / "arguments").read_text().startswith("up ")


@pytest.mark.parametrize("distribution", get_args(Distribution))
def test_the_vendor_has_a_repository_for_every_distribution(distribution: Distribution) -> None:
    repository = vendor_repository(distribution)
    assert repository.key_url == f"{repository.url}/{repository.suite}.noarmor.gpg"
