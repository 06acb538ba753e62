"""The second place for backups: a real rest-server that lets a rack add and never take away."""

from __future__ import annotations

import secrets
from pathlib import Path

import bcrypt

from tests.lab.services.ca import Authority
from tests.lab.services.daemon import Daemon, listening, port_for, private_directory, write_private

HOST = "offsite.drill"
USER = "rack"


class Offsite(Daemon):
    """`rest-server`, append-only, TLS, one account whose repositories lie below `/<user>/`."""

    def __init__(self, services: Path, binary: Path, authority: Authority) -> None:
        super().__init__(services, "offsite")
        self.port = port_for(services, self.name)
        self.url = f"https://{HOST}:{self.port}/{USER}/"
        self.repositories = self.directory / "repositories"
        self.password_file = self.directory / "password"
        self._binary = binary
        self._authority = authority
        self._accounts = self.directory / "htpasswd"

    def prepare(self) -> None:
        """Make the account once; its password stays for the life of the directory."""
        private_directory(self.repositories)
        if not self.password_file.exists():
            write_private(self.password_file, f"{secrets.token_urlsafe(24)}\n")
        password = self.password_file.read_text().strip().encode()
        # The password is random and long, so a cheap hash will do.
        digest = bcrypt.hashpw(password, bcrypt.gensalt(4)).decode()
        write_private(self._accounts, f"{USER}:{digest}\n")

    def command(self) -> list[str]:
        """rest-server over the directory's repositories."""
        return [
            str(self._binary),
            f"--listen=127.0.0.1:{self.port}",
            f"--path={self.repositories}",
            f"--htpasswd-file={self._accounts}",
            "--private-repos",
            "--append-only",
            "--tls",
            f"--tls-cert={self._authority.server_certificate}",
            f"--tls-key={self._authority.server_key}",
        ]

    def ready(self) -> bool:
        """Whether it accepts connections."""
        return listening(self.port)
