"""The sandbox follows from the declaration; every relaxation says why."""

from __future__ import annotations

import pytest

from holdfast.sandbox import (
    LOOPBACK,
    NOTIFY_SOCKET,
    RUN,
    TAILNET,
    Directive,
    allowed,
    sandbox,
)
from holdfast.settings import DataPath, Listen, Peer, Service, Tier


def _service(tier: Tier = "T1", **values: object) -> Service:
    return Service.model_validate(
        {"name": "x", "unit": "x.service", "user": "x", "tier": tier} | values
    )


def _values(lines: list[Directive], name: str) -> list[str]:
    return [line.value for line in lines if line.name == name]


@pytest.mark.parametrize(
    ("listens", "networks"),
    [
        ([], []),
        ([Listen(port=1)], [*LOOPBACK]),
        ([Listen(port=1, scope="tailnet")], [*LOOPBACK, *TAILNET]),
        (
            [Listen(port=1, scope="lan", interface="eth1", sources=["10.77.0.0/24"])],
            [*LOOPBACK, "10.77.0.0/24"],
        ),
    ],
)
def test_a_sovereign_service_exchanges_packets_only_where_it_is_declared_to(
    listens: list[Listen], networks: list[str]
) -> None:
    service = _service(listens=listens)
    assert allowed(service) == networks
    lines = sandbox(_service(listens=listens, peers=[Peer(network="10.77.0.30/32")]))
    assert _values(lines, "IPAddressDeny") == ["any"]
    assert _values(lines, "IPAddressAllow") == [*networks, "10.77.0.30/32"]


def test_loopback_is_one_address_and_not_the_stub_resolver() -> None:
    assert LOOPBACK == ("127.0.0.1/32",)


@pytest.mark.parametrize("tier", ["T1", "T2", "T3", "T4"])
def test_an_isolated_service_has_no_network_in_any_tier(tier: Tier) -> None:
    lines = sandbox(_service(tier, listens=[Listen(port=1, scope="tailnet")]), isolated=True)
    assert _values(lines, "PrivateNetwork") == ["yes"]
    assert _values(lines, "RestrictAddressFamilies") == ["AF_UNIX"]
    assert _values(lines, "IPAddressAllow") == []


@pytest.mark.parametrize(
    ("tier", "user", "isolated", "closed"),
    [
        ("T1", "x", False, True),
        ("T1", "x", True, True),
        ("T2", "x", True, True),
        # It may ask a resolver, and that listens in /run.
        ("T2", "x", False, False),
        ("T1", "root", True, False),
    ],
)
def test_who_may_not_leave_sees_of_run_what_is_ours(
    tier: Tier, user: str, isolated: bool, closed: bool
) -> None:
    lines = sandbox(_service(tier, user=user), isolated=isolated)
    assert _values(lines, "TemporaryFileSystem") == (["/run:ro"] if closed else [])
    assert _values(lines, "BindReadOnlyPaths") == ([f"{RUN} {NOTIFY_SOCKET}"] if closed else [])


def test_the_user_memory_and_state_are_the_declared_ones() -> None:
    data = [
        DataPath(path="/srv/state", backup="state"),
        DataPath(path="/srv/model", backup="derived"),
    ]
    lines = sandbox(_service(memory_max_mib=512, data=data))
    assert _values(lines, "User") == ["x"]
    assert _values(lines, "MemoryMax") == ["512M"]
    assert _values(lines, "ReadWritePaths") == ["-/srv/state"]


def test_a_relaxation_replaces_the_rule_and_says_why() -> None:
    reason = "it compiles code as it runs"
    relaxed = Directive("MemoryDenyWriteExecute", "no", reason)
    lines = sandbox(_service(), relaxed=[relaxed])
    assert [line for line in lines if line.name == relaxed.name] == [relaxed]
    assert _values(sandbox(_service()), "MemoryDenyWriteExecute") == ["yes"]


def test_a_relaxation_without_a_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="say why PrivateUsers is relaxed"):
        sandbox(_service(), relaxed=[Directive("PrivateUsers", "no")])
