"""What of the site closes SSH on the LAN, alone: for the rehearsal of lock-outs."""

from pyinfra import host

from deploys import firewall
from holdfast.site import settings_of

firewall.withdraw_lan_ssh(settings=settings_of(host))
