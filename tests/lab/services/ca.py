"""The lab's certificate authority and the one server certificate that its services share."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.lab.services.daemon import private_directory, write_private

DOMAIN = "drill"
NAMES = ("headscale.drill", "files.drill", "offsite.drill")
CLOUDS = ("one.cloud.drill", "two.cloud.drill")
# Loopback for the controller, slirp's address of the host for the machines.
ADDRESSES = ("127.0.0.1", "10.0.2.2")
LIFE = datetime.timedelta(days=90)
# Guests boot with clocks that can be behind the controller's.
SKEW = datetime.timedelta(days=1)
RENEW_BEFORE = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Authority:
    """Files of the lab's CA and server certificate below one directory."""

    directory: Path

    @property
    def certificate(self) -> Path:
        """The CA certificate that machines trust."""
        return self.directory / "ca.pem"

    @property
    def server_certificate(self) -> Path:
        """The certificate of every TLS service of the lab."""
        return self.directory / "server.pem"

    @property
    def server_key(self) -> Path:
        """The server certificate's private key, mode 0600."""
        return self.directory / "server.key"

    def create(self) -> None:
        """Make CA and server certificate unless valid ones are there.

        The CA's key is never written: what it could still sign is not needed.
        """
        if self._valid():
            return
        private_directory(self.directory)
        now = datetime.datetime.now(datetime.UTC)
        ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Holdfast lab CA")])
        networks = [ipaddress.ip_network(address) for address in ADDRESSES]
        ca = (
            _certificate(ca_name, ca_name, ca_key.public_key(), now)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(
                # A machine that trusts this CA trusts it for the lab's own names and no others.
                x509.NameConstraints(
                    [x509.DNSName(DOMAIN), *(x509.IPAddress(network) for network in networks)],
                    None,
                ),
                critical=True,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False
            )
            .sign(ca_key, hashes.SHA256())
        )
        server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAMES[0])])
        addresses = [x509.IPAddress(ipaddress.ip_address(address)) for address in ADDRESSES]
        names = [x509.DNSName(name) for name in (*NAMES, *CLOUDS)]
        server = (
            _certificate(server_name, ca_name, server_key.public_key(), now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([*names, *addresses]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
                critical=False,
            )
            .sign(ca_key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        write_private(
            self.server_key,
            server_key.private_bytes(
                pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode(),
        )
        self.server_certificate.write_bytes(server.public_bytes(pem))
        self.certificate.write_bytes(ca.public_bytes(pem))

    def _valid(self) -> bool:
        files = (self.certificate, self.server_certificate, self.server_key)
        if not all(file.exists() for file in files):
            return False
        server = x509.load_pem_x509_certificate(self.server_certificate.read_bytes())
        remaining = server.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        return remaining > RENEW_BEFORE


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + LIFE)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
