"""What of the site serves models, in reading order: for `make drill-serving`.

A machine without a kernel of its own takes no firewall and no kernel settings. The accounts that
the ground makes on a whole machine are made here.
"""

from pyinfra import host
from pyinfra.operations import server

from deploys import floor, gpu_limits, gpu_modes, storage, vllm
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
gpu_modes.declare(settings=settings)
gpu_limits.apply(settings=settings)
storage.apply(settings=settings)
floor.apply(settings=settings)
vllm.apply(settings=settings)
gpu_modes.settle(settings=settings)
