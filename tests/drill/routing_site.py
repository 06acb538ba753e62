"""What of the site routes requests, in reading order: for `python -m tests.drill --routing`.

As in `serving_site.py`; the engines are stand-ins, which the drill has started.
"""

from pyinfra import host
from pyinfra.operations import server

from deploys import floor, router, storage
from holdfast.base import service_users
from holdfast.site import settings_of

settings = settings_of(host)

for user in service_users(settings):
    server.user(  # noqa: S604
        name=f"Make the account {user}",
        user=user,
        home="/nonexistent",
        ensure_home=False,
        shell="/usr/sbin/nologin",
        system=True,
    )
storage.apply(settings=settings)
floor.apply(settings=settings)
router.apply(settings=settings)
