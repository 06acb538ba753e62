"""The lab's control server: a real headscale with its own relay, on loopback.

Machines find it as `headscale.drill` (their /etc/hosts says 10.0.2.2), the controller through the
CONNECT proxy. Nothing in its configuration leads outside this machine.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.services.ca import Authority
from tests.lab.services.daemon import Daemon, port_for, write_private

HOST = "headscale.drill"
TAIL_DOMAIN = "tail.drill"
USER = "lab"
TAGS = ("tag:rack", "tag:operator", "tag:guest")
RELAY_REGION = 999
KEY_LIFE = "30m"

# Written by hand because the embedded relay would advertise STUN, and clients then look its name up
# in the public DNS. All traffic of the lab's tailnet may go through the relay.
RELAYS = """regions:
  {region}:
    regionid: {region}
    regioncode: lab
    regionname: Holdfast lab
    nodes:
      - name: {region}a
        regionid: {region}
        hostname: {host}
        stunport: -1
        derpport: {port}
"""


@dataclass(frozen=True)
class Node:
    """A machine as the control server knows it."""

    identifier: int
    name: str
    addresses: tuple[str, ...]
    tags: tuple[str, ...]
    online: bool


class Headscale(Daemon):
    """headscale with sqlite, an embedded DERP relay and a policy file in its directory."""

    def __init__(self, services: Path, binary: Path, authority: Authority) -> None:
        super().__init__(services, "headscale")
        self.port = port_for(services, self.name)
        self.url = f"https://{HOST}:{self.port}"
        self.keys = self.directory / "keys"
        self._binary = binary
        self._authority = authority
        self._config = self.directory / "config.json"

    def prepare(self) -> None:
        """Write configuration, policy and relay map."""
        self.keys.mkdir(mode=0o700, exist_ok=True)
        self._write("policy.json", self._open_policy())
        relays = RELAYS.format(region=RELAY_REGION, host=HOST, port=self.port)
        (self.directory / "relays.yaml").write_text(relays)
        self._write("config.json", self._configuration())

    def _write(self, name: str, content: dict[str, Any]) -> None:
        (self.directory / name).write_text(json.dumps(content, indent=1) + "\n")

    def _open_policy(self) -> dict[str, Any]:
        """What holds until an inventory's own is adopted: everybody may call everybody."""
        return {
            "tagOwners": {tag: [f"{USER}@"] for tag in TAGS},
            "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}],
        }

    def _configuration(self) -> dict[str, Any]:
        return {
            "server_url": self.url,
            "listen_addr": f"127.0.0.1:{self.port}",
            "metrics_listen_addr": "",
            "grpc_listen_addr": "127.0.0.1:0",
            "unix_socket": str(self.directory / "headscale.sock"),
            "unix_socket_permission": "0700",
            "tls_cert_path": str(self._authority.server_certificate),
            "tls_key_path": str(self._authority.server_key),
            "noise": {"private_key_path": str(self.directory / "noise.key")},
            "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48"},
            "database": {
                "type": "sqlite",
                "sqlite": {"path": str(self.directory / "db.sqlite"), "write_ahead_log": True},
            },
            "derp": {
                "server": {
                    "enabled": True,
                    "region_id": RELAY_REGION,
                    "region_code": "lab",
                    "region_name": "Holdfast lab",
                    "verify_clients": True,
                    # Required, and unused: the relay map above advertises no STUN.
                    "stun_listen_addr": "127.0.0.1:0",
                    "private_key_path": str(self.directory / "derp.key"),
                    "automatically_add_embedded_derp_region": False,
                },
                "urls": [],
                "paths": [str(self.directory / "relays.yaml")],
                "auto_update_enabled": False,
            },
            "dns": {
                "magic_dns": True,
                "base_domain": TAIL_DOMAIN,
                "override_local_dns": False,
                "nameservers": {"global": []},
            },
            "policy": {"mode": "file", "path": str(self.directory / "policy.json")},
            "disable_check_updates": True,
            "logtail": {"enabled": False},
            "log": {"level": "info", "format": "text"},
        }

    def command(self) -> list[str]:
        """`headscale serve` with this directory's configuration."""
        return [str(self._binary), "--config", str(self._config), "serve"]

    def ready(self) -> bool:
        """Whether it answers over TLS with a certificate that the lab's CA vouches for."""
        context = ssl.create_default_context(cafile=str(self._authority.certificate))
        address = f"https://127.0.0.1:{self.port}/health"
        try:
            with urllib.request.urlopen(address, timeout=5, context=context) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def check_policy(self, policy: dict[str, Any]) -> str:
        """What the server has to say against a policy, its tests included; empty: nothing."""
        self._write("policy.checked.json", policy)
        file = str(self.directory / "policy.checked.json")
        command = [str(self._binary), f"--config={self._config}", "policy", "check", "--file", file]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return "" if result.returncode == 0 else (result.stderr or result.stdout).strip()

    def adopt_policy(self, policy: dict[str, Any]) -> None:
        """Have this policy hold until the next start; the machines learn of it a moment later.

        The lab joins machines with tags that no inventory names: they exist beside the policy's.

        Raises:
            RuntimeError: the server does not take it; the one before holds.
        """
        owners = {**{tag: [] for tag in TAGS}, **policy["tagOwners"]}
        if problem := self.check_policy({**policy, "tagOwners": owners}):
            raise RuntimeError(f"headscale refuses the policy: {problem}")
        self._write("policy.json", {**policy, "tagOwners": owners})
        os.kill(int(self._pid_file.read_text()), signal.SIGHUP)

    def _ask(self, *arguments: str) -> Any:
        command = [str(self._binary), f"--config={self._config}", "--output=json", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if result.returncode != 0:
            raise RuntimeError(
                f"headscale {' '.join(arguments[:2])} failed: {result.stderr or result.stdout}"
            )
        return json.loads(result.stdout)

    def create_user(self, name: str = USER) -> int:
        """Make the user unless it exists; returns its numeric id."""
        for user in self._ask("users", "list") or []:
            if user["name"] == name:
                return int(user["id"])
        return int(self._ask("users", "create", name)["id"])

    def create_preauth_key(
        self,
        name: str,
        tags: tuple[str, ...] = ("tag:rack",),
        *,
        reusable: bool = False,
        ephemeral: bool = False,
        life: str = KEY_LIFE,
    ) -> Path:
        """Mint a join key and return the 0600 file that holds it (`keys/<name>`).

        Single-use and valid for half an hour unless told otherwise. `life` is a duration such as
        `30m`. The key itself is never in an argument list or a log.
        """
        key = self._ask(
            *("preauthkeys", "create", "--user", str(self.create_user()), "--expiration", life),
            *("--tags", ",".join(tags)),
            *(("--reusable",) if reusable else ()),
            *(("--ephemeral",) if ephemeral else ()),
        )
        file = self.keys / name
        write_private(file, f"{key['key']}\n")
        (self.keys / f"{name}.id").write_text(f"{key['id']}\n")
        return file

    def expire_preauth_key(self, name: str) -> None:
        """Make the key `keys/<name>` worthless and remove its file."""
        identifier = (self.keys / f"{name}.id").read_text().strip()
        self._ask("preauthkeys", "expire", "--id", identifier)
        for file in (self.keys / name, self.keys / f"{name}.id"):
            file.unlink(missing_ok=True)

    def nodes(self) -> list[Node]:
        """Every machine that has joined."""
        return [
            Node(
                identifier=int(node["id"]),
                name=node.get("given_name") or node["name"],
                addresses=tuple(node.get("ip_addresses") or ()),
                tags=tuple(node.get("tags") or ()),
                online=bool(node.get("online")),
            )
            for node in self._ask("nodes", "list") or []
        ]

    def expire_node(self, name: str) -> None:
        """End the node key of a machine, now."""
        for node in self.nodes():
            if node.name == name:
                self._ask("nodes", "expire", "--identifier", str(node.identifier))

    def delete_node(self, name: str) -> bool:
        """Forget a machine, so that a rebuilt one gets the name and not `<name>-1`.

        Returns whether there was one.
        """
        known = [node for node in self.nodes() if node.name == name]
        for node in known:
            identifier = str(node.identifier)
            self._ask("nodes", "delete", "--identifier", identifier, "--force")
        return bool(known)
