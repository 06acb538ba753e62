"""The lab's CA: what its services present is trusted for their names and for nothing else."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.lab.services import ca


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> ca.Authority:
    made = ca.Authority(tmp_path_factory.mktemp("ca"))
    made.create()
    return made


@pytest.fixture
def server_port(authority: ca.Authority) -> Iterator[int]:
    """A TLS server that shakes hands until its socket is closed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server_certificate, authority.server_key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def _shake_hands(port: int, name: str, trusted: Path) -> None:
    context = ssl.create_default_context(cafile=str(trusted))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=name),
    ):
        pass


@pytest.mark.parametrize("name", [*ca.NAMES, *ca.ADDRESSES])
def test_every_service_is_trusted_under_its_names(
    authority: ca.Authority, server_port: int, name: str
) -> None:
    _shake_hands(server_port, name, authority.certificate)


def test_another_name_is_refused(authority: ca.Authority, server_port: int) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        _shake_hands(server_port, "controlplane.tailscale.com", authority.certificate)


def test_another_authority_is_refused(server_port: int, tmp_path: Path) -> None:
    stranger = ca.Authority(tmp_path)
    stranger.create()
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(server_port, ca.NAMES[0], stranger.certificate)


def test_the_ca_may_vouch_for_the_lab_only(authority: ca.Authority) -> None:
    certificate = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
    limits = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert limits.critical
    permitted = limits.value.permitted_subtrees or []
    names = [name.value for name in permitted if isinstance(name, x509.DNSName)]
    assert names == [ca.DOMAIN]


def test_no_ca_key_is_kept_and_the_servers_is_private(authority: ca.Authority) -> None:
    files = {path.name: path.stat().st_mode & 0o777 for path in authority.directory.iterdir()}
    assert set(files) == {"ca.pem", "server.pem", "server.key"}
    assert files["server.key"] == 0o600


def test_it_is_kept_across_runs(authority: ca.Authority) -> None:
    before = authority.certificate.read_bytes()
    authority.create()
    assert authority.certificate.read_bytes() == before
