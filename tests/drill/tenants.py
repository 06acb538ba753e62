"""Services that Holdfast runs itself: installed, updated, killed and removed on a rack."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from facts.tenants import RECORD
from tests.doubles import registry
from tests.drill import personal
from tests.drill.converge import ROOT
from tests.drill.rehearsal import Act
from tests.drill.site import Site
from tests.lab.artefacts import archive, container
from tests.lab.machine import Machine

ACT = "have a container and a program as services"
NAME = "try"
CONTAINER = f"holdfast-tenant-{NAME}"
UNIT = f"{CONTAINER}.service"
PORT = 8190
DATA = "/srv/tenant-try"
SECRET = "TENANT_TOKEN"
KEPT = f"{DATA}/kept"
PROGRAM = "holdfast-tenant-program"
PROGRAM_PORT = 8191
PROGRAM_DATA = "/srv/tenant-program"
PROGRAM_SECRET = "TENANT_KEY"
SECRETS = (SECRET, PROGRAM_SECRET)
LOCK = ROOT / "locks" / "litellm.txt"
"""It has a server that listens on a Unix socket (aiohttp), and an index on the stage."""
SERVES = f"""
from aiohttp import web; import os, pathlib; app = web.Application(); folder = "{PROGRAM_DATA}";
key = pathlib.Path(os.environ["CREDENTIALS_DIRECTORY"], "key").read_text();
pathlib.Path(folder, "health").write_text(f"ok {{len(key)}}"); app.router.add_static("/", folder);
web.run_app(app, path="/run/holdfast/{PROGRAM}/http.sock")
"""
ASKED = f"curl --silent --fail --max-time 5 http://127.0.0.1:{PORT}/ | grep --quiet --fixed-strings"
ANSWERS = f"{ASKED} {container.ANSWER}"
ID = f"docker inspect --format '{{{{.Id}}}}' {CONTAINER}"
JUDGED = (
    "services::each_runs_as_its_user",
    "services::each_listens_only_where_it_is_declared",
    "services::isolated_units_have_no_network",
    "services::only_root_can_read_secrets_and_they_are_nowhere_else",
    "services::each_restarts_when_it_ends",
    "sandbox::systemd_finds_every_unit_as_closed_as_declared",
    "docker::the_container_of_a_declared_service_is_on_its_network_alone",
)
"""Host tests that judge a tenant, too."""


class Stage(Protocol):
    """What this drill needs of its stage."""

    folder: Path

    @property
    def rack(self) -> Machine:
        """The machine."""

    @property
    def site(self) -> str:
        """Where the rack fetches what it is given, as a URL."""

    def secret(self, name: str) -> str:
        """The value of a secret."""

    def inventory_data(self) -> dict[str, Any]:
        """What is declared now."""

    def declared(self, **changes: object) -> AbstractContextManager[None]:
        """Have something else in the inventory meanwhile."""


def acts(tried: Callable[[], Tenants]) -> Sequence[Act]:
    """The life of a container and of a Python program."""
    return (Act(ACT, lambda: tried().live()),)


def declared(image: str) -> dict[str, object]:
    """The tenant's entry in the inventory."""
    return {
        "name": NAME,
        "container": {
            "image": image,
            "command": ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"],
            "environment": {"CAPTION": "100 % $ours"},
            "secrets": {"token": SECRET},
            "ports": {PORT: 8080},
            "mounts": {DATA: "/data"},
            "stop_seconds": 2,
        },
        "tier": "T1",
        "network": "sealed-net",
        "listens": [{"port": PORT}],
        "memory_max_mib": 64,
        "data": [{"path": DATA, "backup": "state"}],
        "health": {"url": f"http://127.0.0.1:{PORT}/", "contains": container.ANSWER},
    }


def program(packages: str) -> dict[str, object]:
    """The entry of a Python program, whose packages are at this URL."""
    return {
        "name": "program",
        "python": {
            "lock": str(LOCK),
            "packages": packages,
            "command": ["python", "-c", " ".join(SERVES.split())],
            "secrets": {"key": PROGRAM_SECRET},
        },
        "tier": "T1",
        "listens": [{"port": PROGRAM_PORT}],
        "memory_max_mib": 256,
        "data": [{"path": PROGRAM_DATA, "backup": "state"}],
        "health": {"url": f"http://127.0.0.1:{PROGRAM_PORT}/health", "contains": "ok"},
    }


class Tenants:
    """A container of an inventory, tried."""

    def __init__(self, stage: Stage, site: Site) -> None:
        self.stage, self.site, self.record = stage, site, site.record

    def live(self) -> None:
        """Declare tenants, update one, disturb both, and take them out of the inventory."""
        first, second = self._images()
        others = self.stage.inventory_data()["services"]
        others = [*others, program(f"{self.stage.site}/{personal.INDEX}")]
        with self._registry():
            with self.stage.declared(services=[*others, declared(first)]):
                self.site.converge("with tenants", fatal=True)
                self._expect_installed()
                self._expect_program("answers")
                self.site.expect_nothing("with tenants, again")
                self._judge()
            with self.stage.declared(services=[*others, declared(second)]):
                self.site.converge("with another digest", fatal=True)
                self._expect_updated(first, second)
                self._disturb()
            self.site.converge("without tenants", fatal=True)
            self._expect_removed(second)

    def _images(self) -> list[str]:
        """Two images in the rack's registry, by digest."""
        rack, folder = self.stage.rack, self.stage.folder / "registry"
        digests = registry.lay(container.build().file("holdfast-probe.tar"), folder, ["1", "2"])
        packed = self.stage.folder / "registry.tar"
        archive.pack(folder, packed, ".")
        rack.copy_to(packed, "/root/registry.tar")
        rack.copy_to(Path(registry.__file__), "/root/registry.py")
        rack.succeed("mkdir -p /root/registry && tar -C /root/registry -xf /root/registry.tar")
        return [f"127.0.0.1:{registry.PORT}/try/probe@{digest}" for digest in digests]

    @contextmanager
    def _registry(self) -> Iterator[None]:
        rack = self.stage.rack
        rack.succeed(
            "systemd-run --quiet --collect --unit=lab-registry"
            " python3 /root/registry.py /root/registry"
        )
        rack.wait_until_succeeds(
            f"curl --silent --fail http://127.0.0.1:{registry.PORT}/v2/", timeout_seconds=60
        )
        try:
            yield
        finally:
            rack.succeed("systemctl stop lab-registry")

    def _expect_installed(self) -> None:
        rack, record = self.stage.rack, self.record
        record.check("a container of the inventory answers", rack.execute(ANSWERS)[0] == 0)
        inside = f"docker exec {CONTAINER} /bin/busybox"
        rack.succeed(f"{inside} touch /data/kept")
        owner = rack.succeed(f"stat --format='%u:%g %a' {DATA}").strip()
        record.check("its data is its own", owner == "65532:65532 700", owner)
        told = rack.succeed(f"{inside} cat /run/secrets/token")
        inspected = rack.succeed(f"docker inspect {CONTAINER}")
        token = self.stage.secret(SECRET)
        record.check("it reads its secret", told == token)
        record.check("Docker does not show its secret", token not in inspected)
        (shown,) = json.loads(inspected)
        limits, user = shown["HostConfig"], shown["Config"]["User"]
        closed = {
            "user": user == "65532:65532",
            "capabilities": limits["CapDrop"] == ["ALL"] and not limits["CapAdd"],
            "file system": limits["ReadonlyRootfs"] and not limits["Privileged"],
            "privileges": any("no-new-privileges" in each for each in limits["SecurityOpt"]),
            "log": limits["LogConfig"]["Type"] == "none",
        }
        open_ = [name for name, is_closed in closed.items() if not is_closed]
        record.check("it is as closed as it is declared", not open_, open_ or "closed")
        said = rack.succeed(f"{inside} sh -c 'echo $CAPTION'").strip()
        record.check("its variables are as they are written", said == "100 % $ours", said)

    def _judge(self) -> None:
        outcomes = self.site.host_tests("with tenants", JUDGED)
        wrong = {test: seen for test, seen in outcomes.items() if seen != "passed"}
        good = not wrong and len(outcomes) == len(JUDGED)
        self.record.check("host tests hold for tenants", good, wrong or len(outcomes))

    def _expect_updated(self, first: str, second: str) -> None:
        rack = self.stage.rack
        version = f"docker exec {CONTAINER} /bin/busybox sh -c 'echo $HOLDFAST_VERSION'"
        seen = rack.succeed(version).strip()
        good = seen == "2" and rack.execute(ANSWERS)[0] == 0
        self.record.check("another digest is another container", good, seen)
        gone = rack.execute(f"docker image inspect {first}")[0] != 0
        there = rack.execute(f"docker image inspect {second}")[0] == 0
        self.record.check("the image of before has gone", gone and there)

    def _expect_program(self, does: str) -> None:
        asked = f"curl --silent --fail --max-time 5 http://127.0.0.1:{PROGRAM_PORT}/health"
        said = f"ok {len(self.stage.secret(PROGRAM_SECRET))}"
        seen = self.stage.rack.execute(f"for n in $(seq 60); do {asked} && break; sleep 1; done")[1]
        self.record.check(f"a program of the inventory {does}", seen == said, seen)

    def _disturb(self) -> None:
        self.stage.rack.succeed(f"systemctl kill --signal=KILL {PROGRAM}")
        self._expect_program("comes back when it is killed")
        for trick, hurt in {
            "when it is killed": f"docker kill {CONTAINER}",
            "when its unit's process is killed": f"systemctl kill --signal=KILL {UNIT}",
            "when Docker restarts": "systemctl restart docker",
            "when Docker is stopped and started": "systemctl stop docker.socket docker"
            " && systemctl start docker",
            "when Docker is killed": "systemctl kill --signal=KILL docker",
        }.items():
            self._expect_another_after(trick, hurt)

    def _expect_another_after(self, trick: str, hurt: str) -> None:
        rack = self.stage.rack
        before = rack.succeed(ID).strip()
        # systemd starts Docker three times in a minute and no more.
        rack.succeed(f"systemctl reset-failed docker; {hurt}", timeout_seconds=120)
        back = f"{ANSWERS} && systemctl --quiet is-active {UNIT}"
        another = f'now="$({ID})" && [ "$now" != {shlex.quote(before)} ] && {back}'
        try:
            rack.wait_until_succeeds(another, timeout_seconds=120)
        except Exception as error:
            self.record.check(f"a container comes back {trick}", False, error)
        else:
            self.record.check(f"a container comes back {trick}", True)

    def _expect_removed(self, image: str) -> None:
        rack, record = self.stage.rack, self.record
        owned = f"/etc/systemd/system/{CONTAINER}* /etc/holdfast/credentials/{CONTAINER}*"
        left = rack.execute(f"ls -d {owned} 2>/dev/null")
        containers = rack.succeed("docker ps --all --format '{{.Names}}'").split()
        record.check("a container leaves with its entry", CONTAINER not in containers, containers)
        record.check("and so do its unit and its secret", left[0] != 0 and not left[1], left[1])
        gone = rack.execute(f"docker image inspect {image}")[0] != 0
        recorded = rack.succeed(f"cat {RECORD}")
        record.check("and its image", gone and not recorded, recorded)
        left = rack.execute(f"ls -d /etc/systemd/system/{PROGRAM}* /opt/holdfast/{PROGRAM} 2>&1")
        lines = [line for line in left[1].splitlines() if "cannot access" not in line]
        record.check(
            "a program leaves with its entry, and so does what it ran from", not lines, lines
        )
        kept = rack.execute(f"test -e {KEPT} && test -e {PROGRAM_DATA}/health")[0] == 0
        record.check("the data of both stays", kept)
