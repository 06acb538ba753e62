"""The one list of capabilities that serve: their services, programs and files, in site order.

`holdfast.registry` takes every service from here, `holdfast.programs` every program,
`deploys.services` what it deploys, and `holdfast.owned` what it may remove. A capability that is
not on the list does nothing.
"""

from __future__ import annotations

from facts.places import CONFIGURATION, CREDENTIALS, STATE, SYSTEM
from facts.tenants import TENANT
from holdfast import clouds, docker, floor, ledger, router, routing, ssh, tailnet, tenants
from holdfast.engines import servers, units
from holdfast.host_programs import replace
from holdfast.service.capability import Capability

ENGINES = Capability(
    "Engines",
    servers.services,
    units.programs,
    owns=(
        *(f"{SYSTEM}/{name}" for name in units.BESIDE),
        f"{replace.JOBS}/*.json",
        *(
            pattern
            for server in servers.SERVERS
            for pattern in (
                f"{SYSTEM}/holdfast-{server.name}-*.*",
                f"{CREDENTIALS}/holdfast-{server.name}-*",
                *(f"{CONFIGURATION}/{server.name}/*.{kind}" for kind in ("yaml", "cfg", "json")),
            )
        ),
    ),
    beside=units.beside,
    keeps=tuple(f"/var/cache/holdfast-{server.name}-*" for server in servers.SERVERS),
)
CAPABILITIES: tuple[Capability, ...] = (
    Capability("SSH", ssh.services),
    Capability("Tailnet", tailnet.services),
    Capability("Docker", docker.services),
    Capability(
        "Floor",
        floor.services,
        floor.programs,
        owns=(
            *(f"{SYSTEM}/holdfast-floor*.*", f"{SYSTEM}/{floor.SLICE}"),
            *(f"{CREDENTIALS}/floor-*", f"{CONFIGURATION}/floor/*.cfg"),
        ),
        keeps=(floor.FLOOR_STATE,),
    ),
    ENGINES,
    Capability(
        "Ledger",
        ledger.services,
        ledger.programs,
        owns=(f"{SYSTEM}/holdfast-ledger*.*", f"{ledger.FOLDER}/*"),
        keeps=(f"{STATE}/ledger", routing.LEDGER_DUMPS),
    ),
    Capability(
        "Routers",
        routing.services,
        router.programs,
        owns=(
            *(f"{SYSTEM}/holdfast-{kind}-*.*" for kind in ("router", "queue", "clouds")),
            *(f"{CREDENTIALS}/holdfast-{kind}-*" for kind in ("router", "clouds")),
            *(f"{router.CONFIGURATIONS}/*.cfg", f"{clouds.CONFIGURATIONS}/*.json"),
        ),
        keeps=(f"{STATE}/queue",),
    ),
    # Their services are the inventory's own.
    Capability(
        "Tenants",
        programs=tenants.programs,
        owns=(
            *(f"{SYSTEM}/{TENANT}*.*", f"{CREDENTIALS}/{TENANT}*"),
            f"{tenants.CONFIGURATIONS}/*.cfg",
        ),
    ),
)
