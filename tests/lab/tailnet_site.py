"""What of the site a tailnet meets, in reading order: for `test_tailnet_live.py`."""

from pyinfra import host

from deploys import egress, firewall, removal, tailnet
from holdfast.site import settings_of

settings = settings_of(host)

firewall.apply(settings=settings)
removal.apply(settings=settings)
egress.apply(settings=settings)
tailnet.apply(settings=settings)
