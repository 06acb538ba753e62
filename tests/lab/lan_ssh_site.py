"""What of the site opens and closes SSH on the LAN, alone: for `test_tailnet_live.py`."""

from pyinfra import host

from deploys import firewall
from holdfast.site import settings_of

settings = settings_of(host)

firewall.apply(settings=settings)
firewall.withdraw_lan_ssh(settings=settings)
