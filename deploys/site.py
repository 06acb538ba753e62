"""What a machine becomes, in reading order. `pyinfra inventories/<yours>.py deploys/site.py`."""

from pyinfra import host

from deploys import backup, base, docker, firewall, floor, ssh, storage, tailnet
from holdfast.site import settings_of

settings = settings_of(host)

base.apply(settings=settings)
ssh.apply(settings=settings)
firewall.apply(settings=settings)
docker.apply(settings=settings)
tailnet.apply(settings=settings)
storage.apply(settings=settings)
floor.apply(settings=settings)
backup.apply(settings=settings)
firewall.withdraw_lan_ssh(settings=settings)
