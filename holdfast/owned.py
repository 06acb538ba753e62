"""What Holdfast owns on a host, by name, and how much of it the inventory declares.

Units, configuration and keys carry names that only Holdfast gives. Such a file that the inventory
does not declare is left over from an entry that was removed. Data is not among them: it stays.
"""

from __future__ import annotations

from facts.places import CONFIGURATION, CREDENTIALS, SYSTEM
from holdfast import backup, clouds, ledger, router, service
from holdfast.engines import units
from holdfast.engines.servers import SERVERS
from holdfast.gpu import limits
from holdfast.programs import programs
from holdfast.settings import HostSettings

PATTERNS = {
    "floor": (
        *(f"{SYSTEM}/holdfast-floor*.*", f"{SYSTEM}/floor.slice"),
        *(f"{CREDENTIALS}/floor-*", f"{CONFIGURATION}/floor/*.cfg"),
    ),
    "engines": (
        *(f"{SYSTEM}/{name}" for name in (units.RECOVERY, units.DEVICES, units.UNDO)),
        *(f"{SYSTEM}/holdfast-{server.name}-*.*" for server in SERVERS),
        *(f"{CREDENTIALS}/holdfast-{server.name}-*" for server in SERVERS),
        *(
            f"{CONFIGURATION}/{server.name}/*.{kind}"
            for server in SERVERS
            for kind in ("yaml", "cfg", "json")
        ),
    ),
    "routers": (
        *(f"{SYSTEM}/holdfast-{kind}-*.*" for kind in ("router", "queue", "clouds")),
        f"{SYSTEM}/holdfast-ledger*.*",
        *(f"{CREDENTIALS}/holdfast-{kind}-*" for kind in ("router", "clouds")),
        *(f"{router.CONFIGURATIONS}/*.cfg", f"{clouds.CONFIGURATIONS}/*.json"),
        f"{ledger.FOLDER}/*",
    ),
    "backup": (
        f"{SYSTEM}/holdfast-backup@*.*",
        *(f"{SYSTEM}/holdfast-{kind}-check@*.*" for kind in ("backup", "restore")),
        *(f"{CREDENTIALS}/backup-*", f"{backup.JOBS}/*.json"),
    ),
    "gpu_limits": (f"{SYSTEM}/holdfast-gpu-limits.*", limits.CONFIG),
}
"""Capability to shell patterns of the files that it has on a host."""


def patterns() -> list[str]:
    """Every pattern."""
    return [pattern for own in PATTERNS.values() for pattern in own]


def declared(settings: HostSettings) -> list[str]:
    """The paths that match `PATTERNS` and belong to what the inventory declares."""
    repositories = settings.backup.repositories if settings.backup else []
    engines = units.every(settings)
    beside = (units.RECOVERY, units.DEVICES, units.UNDO)
    return [
        *service.paths(programs(settings)),
        *(names.configuration for names in engines),
        *((f"{SYSTEM}/{name}" for name in beside) if engines else ()),
        *(backup.unit_files(settings) if settings.backup else ()),
        *(path for each in repositories for path in backup.files_of(each).values()),
        *((*limits.unit_files(), limits.CONFIG) if settings.gpus else ()),
    ]
