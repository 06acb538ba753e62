"""The controller as a node of the lab's tailnet, without root and without a network device."""

from __future__ import annotations

import json
import shlex
import subprocess
from contextlib import suppress
from pathlib import Path
from select import select
from typing import Any

import httpx

from tests.lab.services.ca import Authority
from tests.lab.services.connect_proxy import ConnectProxy
from tests.lab.services.daemon import Daemon, port_for, wait_until
from tests.lab.services.headscale import Headscale

HOSTNAME = "operator"
JOIN_TIMEOUT_SECONDS = 60
# States of tailscaled that become something else by themselves.
UNDECIDED = ("NoState", "Starting")


class Tailnet(Daemon):
    """An unprivileged `tailscaled` in userspace mode, joined to the lab's headscale."""

    def __init__(
        self,
        services: Path,
        binary: Path,
        headscale: Headscale,
        proxy: ConnectProxy,
        authority: Authority,
        *,
        hostname: str = HOSTNAME,
        tag: str = "tag:operator",
    ) -> None:
        super().__init__(services, f"tailnet-{hostname}")
        self.hostname = hostname
        self.http_proxy_port = port_for(services, self.name)
        self.socket = self.directory / "tailscaled.sock"
        self.client = self.directory / "tailscale"
        self._binary = binary
        self._headscale = headscale
        self._proxy = proxy
        self._authority = authority
        self._tag = tag

    def prepare(self) -> None:
        """Make the command-line client: the same program under its other name."""
        self.client.unlink(missing_ok=True)
        self.client.symlink_to(self._binary)

    def command(self) -> list[str]:
        """`tailscaled` without a device; its way into the tailnet is an HTTP proxy on loopback."""
        return [
            str(self._binary),
            "--tun=userspace-networking",
            f"--statedir={self.directory}",
            f"--socket={self.socket}",
            f"--outbound-http-proxy-listen=127.0.0.1:{self.http_proxy_port}",
        ]

    def environment(self) -> dict[str, str]:
        """Nothing but the lab can be reached, and no packet leaves but through the proxy."""
        proxy = f"http://127.0.0.1:{self._proxy.port}"
        return {
            "HTTPS_PROXY": proxy,
            "HTTP_PROXY": proxy,
            "NO_PROXY": "",
            "SSL_CERT_FILE": str(self._authority.certificate),
            "TS_NO_LOGS_NO_SUPPORT": "true",
            # No UDP at all: a peer's advertised private addresses exist on somebody else's
            # network too, and the controller must not probe them.
            "TS_DEBUG_ALWAYS_USE_DERP": "true",
            "TS_DISABLE_PORTMAPPER": "true",
            "TS_FORCE_NOISE_443": "true",
            "TS_PANIC_IF_HIT_MAIN_CONTROL": "true",
        }

    def ready(self) -> bool:
        """Whether the daemon answers its client, joined or not."""
        try:
            self.status()
        except (OSError, RuntimeError):
            return False
        return True

    def _client(self, *arguments: str, timeout_seconds: float = 30) -> str:
        command = [str(self.client), f"--socket={self.socket}", *arguments]
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=timeout_seconds
        )
        if result.returncode != 0:
            raise RuntimeError(
                f"tailscale {arguments[0]} failed: {(result.stderr or result.stdout).strip()}"
            )
        return result.stdout

    def status(self) -> dict[str, Any]:
        """`tailscale status --json`. Raises RuntimeError while the daemon does not answer."""
        status: dict[str, Any] = json.loads(self._client("status", "--json"))
        return status

    def _state(self) -> str:
        return str(self.status()["BackendState"])

    def joined(self) -> bool:
        """Whether the node is part of the tailnet."""
        return self._state() == "Running"

    def join(self) -> None:
        """Keep the membership of an earlier run, or join with a fresh single-use key."""
        with suppress(TimeoutError):
            wait_until(
                lambda: self._state() not in UNDECIDED, "the stored login", JOIN_TIMEOUT_SECONDS
            )
        if self.joined():
            return
        self._headscale.delete_node(self.hostname)
        key = self._headscale.create_preauth_key(self.hostname, (self._tag,))
        try:
            self._client(
                "up",
                f"--login-server={self._headscale.url}",
                f"--auth-key=file:{key}",
                f"--hostname={self.hostname}",
                f"--timeout={JOIN_TIMEOUT_SECONDS}s",
                "--accept-dns=false",
                "--force-reauth",
                "--reset",
                timeout_seconds=JOIN_TIMEOUT_SECONDS + 30,
            )
        finally:
            self._headscale.expire_preauth_key(self.hostname)

    def start(self) -> None:
        """Start the daemon and join."""
        super().start()
        self.join()

    def proxy_command(self) -> str:
        """`ProxyCommand` for ssh that reaches a machine over the tailnet."""
        client, socket = shlex.quote(str(self.client)), shlex.quote(str(self.socket))
        return f"{client} --socket={socket} nc %h %p"

    def answered(self, name: str, port: int, timeout_seconds: float) -> bool:
        """Whether a machine says anything to this node at a port: greets it, or answers a GET."""
        command = self.proxy_command().replace("%h", name).replace("%p", str(port))
        with subprocess.Popen(
            shlex.split(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # What a buffer still holds is written when it is closed, to somebody who has gone.
            bufsize=0,
        ) as call:
            assert call.stdin is not None
            assert call.stdout is not None
            with suppress(BrokenPipeError):
                call.stdin.write(b"GET / HTTP/1.0\r\n\r\n")
            heard, _, _ = select([call.stdout], [], [], timeout_seconds)
            said = bool(heard) and bool(call.stdout.read(1))
            call.terminate()
        return said

    def addresses(self, name: str) -> list[str]:
        """Tailnet addresses of a machine as the controller sees it. Raises LookupError."""
        for peer in (self.status().get("Peer") or {}).values():
            if peer["DNSName"].split(".")[0] == name:
                return list(peer["TailscaleIPs"])
        raise LookupError(f"no machine named {name!r} in the tailnet")

    def session(self, timeout_seconds: float = 60) -> httpx.Client:
        """An HTTP client whose requests travel over the tailnet; use it as a context manager."""
        proxy = f"http://127.0.0.1:{self.http_proxy_port}"
        return httpx.Client(proxy=proxy, timeout=timeout_seconds, trust_env=False)

    def get(self, url: str, **options: Any) -> httpx.Response:
        """One GET over the tailnet; `options` as httpx takes them."""
        with self.session() as session:
            return session.get(url, **options)

    def post(self, url: str, **options: Any) -> httpx.Response:
        """One POST over the tailnet; `options` as httpx takes them."""
        with self.session() as session:
            return session.post(url, **options)
