"""What of the site guards a host's doors, in reading order: for `test_firewall_live.py`."""

from pyinfra import host

from deploys import docker, firewall, removal
from holdfast.site import settings_of

settings = settings_of(host)

firewall.apply(settings=settings)
removal.apply(settings=settings)
docker.apply(settings=settings)
