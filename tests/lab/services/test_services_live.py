"""The real services on this machine's loopback: two nodes meet through headscale and its relay."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator

import pytest

from tests.lab.services import Services
from tests.lab.services.headscale import TAIL_DOMAIN
from tests.lab.services.tailnet import Tailnet

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    made = Services(tmp_path_factory.mktemp("services"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def rack(services: Services) -> Tailnet:
    """A second userspace node in the rack's place; it passes connections on to loopback."""
    node = Tailnet(
        services.directory,
        services.artefacts["tailscale-operator"].file("tailscaled"),
        services.headscale,
        services.proxy,
        services.authority,
        hostname="rack",
        tag="tag:rack",
    )
    node.start()
    return node


def test_everything_answers(services: Services) -> None:
    assert services.ready()


@pytest.mark.usefixtures("rack")
def test_tailscale_nc_reaches_the_rack(services: Services) -> None:
    command = services.tailnet.proxy_command().replace("%h", f"rack.{TAIL_DOMAIN}")
    with subprocess.Popen(
        shlex.split(command.replace("%p", str(services.files.port))),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as connection:
        assert connection.stdin is not None
        assert connection.stdout is not None
        connection.stdin.write(b"GET /ca.pem HTTP/1.0\r\n\r\n")
        connection.stdin.flush()
        assert b"200" in connection.stdout.readline()
        connection.terminate()


@pytest.mark.usefixtures("rack")
def test_http_travels_over_the_tailnet(services: Services) -> None:
    answer = services.tailnet.get(f"http://rack.{TAIL_DOMAIN}:{services.files.port}/ca.pem")
    assert answer.content == services.authority.certificate.read_bytes()


def test_a_rebuilt_rack_keeps_its_name(services: Services, rack: Tailnet) -> None:
    rack.stop()
    for state in rack.directory.iterdir():
        if state.is_file() and state != rack.client:
            state.unlink()
    rack.start()
    named = [node for node in services.headscale.nodes() if node.name.startswith("rack")]
    assert [(node.name, node.tags) for node in named] == [("rack", ("tag:rack",))]


def test_a_key_joins_once_and_none_are_left_lying_about(services: Services) -> None:
    file = services.headscale.create_preauth_key("spare")
    assert file.stat().st_mode & 0o777 == 0o600
    services.headscale.expire_preauth_key("spare")
    assert list(services.headscale.keys.iterdir()) == []


def test_the_controllers_node_listens_on_loopback_only(services: Services) -> None:
    listing = subprocess.run(["ss", "-Htulnp"], capture_output=True, text=True, check=True).stdout
    pid = (services.tailnet.directory / "pid").read_text().strip()
    mine = [line.split()[4] for line in listing.splitlines() if f"pid={pid}," in line]
    assert mine == [f"127.0.0.1:{services.tailnet.http_proxy_port}"]


def test_nothing_but_headscale_was_asked_for(services: Services) -> None:
    assert "refused" not in services.proxy.log.read_text()
