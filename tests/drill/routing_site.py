"""What of the site routes requests, in reading order: for `python -m tests.drill --routing`.

As in `serving_site.py`; the engines are stand-ins, which the drill has started.
"""

from pyinfra import host

from deploys import docker, egress, firewall, removal, services, storage
from holdfast.capabilities import CAPABILITIES, ENGINES
from holdfast.site import settings_of
from tests.drill import accounts

settings = settings_of(host)

accounts.make(settings)
firewall.apply(settings=settings)
removal.apply(settings=settings)
egress.apply(settings=settings)
docker.apply(settings=settings)
storage.apply(settings=settings)
services.apply(settings=settings, only=[each for each in CAPABILITIES if each is not ENGINES])
