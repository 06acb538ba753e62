"""The whole site in reading order: `pyinfra inventories/<yours>.py deploys/site.py`."""

from pyinfra import host

from deploys import (
    backup,
    base,
    docker,
    egress,
    engines,
    firewall,
    gpu_acceptance,
    gpu_containers,
    gpu_driver,
    gpu_limits,
    gpu_modes,
    removal,
    services,
    ssh,
    storage,
    tailnet,
    tenants,
)
from holdfast.site import settings_of

settings = settings_of(host)

base.apply(settings=settings)
ssh.apply(settings=settings)
firewall.apply(settings=settings)
# Before egress forgets the networks of containers that are still running.
removal.apply(settings=settings)
egress.apply(settings=settings)
gpu_acceptance.before_driver(settings=settings)
gpu_driver.apply(settings=settings)
gpu_acceptance.before_caps(settings=settings)
gpu_modes.declare(settings=settings)
gpu_limits.apply(settings=settings)
gpu_acceptance.after_driver(settings=settings)
docker.apply(settings=settings)
gpu_containers.apply(settings=settings)
tailnet.apply(settings=settings)
storage.apply(settings=settings)
services.apply(settings=settings)
tenants.prune(settings=settings)
gpu_modes.settle(settings=settings)
backup.apply(settings=settings)
engines.settle(settings=settings)
firewall.withdraw_lan_ssh(settings=settings)
gpu_containers.look(settings=settings)
