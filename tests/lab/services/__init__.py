"""What runs beside the lab's machines: download site, control server, relay, second backup place.

Machines reach all of it at 10.0.2.2, which is how QEMU's user network shows them the controller's
loopback; nothing listens anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.lab import artefacts
from tests.lab.artefacts import apt_repo, container, tailscale_repo
from tests.lab.artefacts.store import sha256
from tests.lab.services.ca import NAMES, Authority
from tests.lab.services.connect_proxy import ConnectProxy
from tests.lab.services.daemon import REPOSITORY, Daemon, private_directory, stop_all
from tests.lab.services.files import FileServer
from tests.lab.services.headscale import HOST, TAIL_DOMAIN, Headscale
from tests.lab.services.offsite import USER, Offsite
from tests.lab.services.tailnet import HOSTNAME, Tailnet

DIRECTORY = REPOSITORY / ".lab" / "services"
# QEMU's user network shows a guest the controller's loopback under this address.
CONTROLLER_SEEN_BY_GUESTS = "10.0.2.2"


class Services:
    """Every service of one lab, with all its state below one directory."""

    def __init__(
        self, directory: Path = DIRECTORY, served: Mapping[str, Path] | None = None
    ) -> None:
        """``served``: path below the download site's URL to what is served there as well."""
        self.directory = private_directory(directory.absolute())
        self.artefacts = built = artefacts.build()
        self.authority = Authority(self.directory / "ca")
        llama, restic = built["llama"], built["restic-release"]
        self._paths = {
            "llama": f"llama/llama-{llama.version}-bin-linux-x64.tar.gz",
            "model": "models/tiny.gguf",
            "restic": f"restic/restic_{restic.version}_linux_amd64.bz2",
            "restic_program": "restic/restic",
            "rest_server_program": "rest-server/rest-server",
            "container": "container/holdfast-probe.tar",
            "ca": "ca.pem",
        }
        self._sources = {
            "llama": llama.file("llama-server.tar.gz"),
            "model": built["gguf"].file("tiny.gguf"),
            "restic": restic.file("restic.bz2"),
            "restic_program": built["restic"].file("restic"),
            "rest_server_program": built["rest-server"].file("rest-server"),
            "container": built["container"].file("holdfast-probe.tar"),
            "ca": self.authority.certificate,
        }
        repository = built["tailscale-repository"].file(tailscale_repo.BASE)
        content = {path: self._sources[name] for name, path in self._paths.items()}
        content |= {tailscale_repo.BASE: repository, **(served or {})}
        self.files = FileServer(self.directory, content)
        self.headscale = Headscale(
            self.directory, built["headscale"].file("headscale"), self.authority
        )
        self.proxy = ConnectProxy(
            self.directory, f"{HOST}:{self.headscale.port}", self.headscale.port
        )
        self.tailnet = self.node(HOSTNAME, "tag:operator")
        self.guest = self.node("guest", "tag:guest")
        self.offsite = Offsite(
            self.directory, built["rest-server"].file("rest-server"), self.authority
        )

    @property
    def site(self) -> str:
        """The download site's URL, as a machine of the lab sees it."""
        return f"http://{CONTROLLER_SEEN_BY_GUESTS}:{self.files.port}"

    def node(self, hostname: str, tag: str) -> Tailnet:
        """A userspace node on the controller, joined once it is started."""
        return Tailnet(
            self.directory,
            self.artefacts["tailscale-operator"].file("tailscaled"),
            self.headscale,
            self.proxy,
            self.authority,
            hostname=hostname,
            tag=tag,
        )

    @property
    def daemons(self) -> tuple[Daemon, ...]:
        """All of them, in the order in which they can start."""
        return (self.files, self.headscale, self.proxy, self.tailnet, self.guest, self.offsite)

    def start(self) -> None:
        """Start what does not run yet and wait until everything answers.

        Raises ServiceFailed with the end of the log of the one that did not.
        """
        self.authority.create()
        for daemon in self.daemons:
            daemon.start()

    def stop(self) -> None:
        """Stop everything; keys, accounts and repositories stay for the next start."""
        stop_all(self.directory)

    def ready(self) -> bool:
        """Whether everything answers and the controller is part of the tailnet, twice."""
        return all(daemon.running() and daemon.ready() for daemon in self.daemons) and all(
            node.joined() for node in (self.tailnet, self.guest)
        )

    def facts(self) -> dict[str, Any]:
        """All that an inventory of the drill needs to know, ready for JSON. No secrets: paths only.

        URLs are as a machine of the lab sees them.
        """
        base = f"{self.site}/{tailscale_repo.BASE}"
        downloads = {
            name: {"url": f"{self.site}/{path}", "sha256": sha256(self._sources[name])}
            for name, path in self._paths.items()
        }
        return {
            "hosts": dict.fromkeys(NAMES, CONTROLLER_SEEN_BY_GUESTS),
            "ca_file": str(self.authority.certificate),
            "downloads": downloads,
            "container_image": container.IMAGE,
            "container_answer": container.ANSWER,
            "tailscale": {
                "repository_url": base,
                "key_urls": {
                    name: f"{base}/{name}.noarmor.gpg" for name in tailscale_repo.CODENAMES
                },
                "key_fingerprint": apt_repo.fingerprint(),
                "component": apt_repo.COMPONENT,
            },
            "headscale": {
                "url": self.headscale.url,
                "port": self.headscale.port,
                "tail_domain": TAIL_DOMAIN,
                "keys_directory": str(self.headscale.keys),
            },
            "tailnet": {
                "proxy_command": self.tailnet.proxy_command(),
                "http_proxy_port": self.tailnet.http_proxy_port,
                "operator": self.tailnet.hostname,
            },
            "offsite": {
                "url": self.offsite.url,
                "port": self.offsite.port,
                "user": USER,
                "password_file": str(self.offsite.password_file),
                "repositories": str(self.offsite.repositories),
            },
            "versions": {name: entry.version for name, entry in self.artefacts.entries.items()},
        }
