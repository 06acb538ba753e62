"""What of the site routes requests, in reading order: for `python -m tests.drill --routing`.

As in `serving_site.py`; the engines are stand-ins, which the drill has started.
"""

from pyinfra import host

from deploys import docker, egress, firewall, floor, ledger, removal, router, storage
from holdfast.site import settings_of
from tests.drill import accounts

settings = settings_of(host)

accounts.make(settings)
firewall.apply(settings=settings)
egress.apply(settings=settings)
removal.apply(settings=settings)
docker.apply(settings=settings)
storage.apply(settings=settings)
floor.apply(settings=settings)
ledger.apply(settings=settings)
router.apply(settings=settings)
