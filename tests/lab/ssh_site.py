"""What of the site a login meets: for `test_rooted_live.py`."""

from pyinfra import host

from deploys import ssh
from holdfast.site import settings_of

ssh.apply(settings=settings_of(host))
