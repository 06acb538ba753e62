"""What of the site serves models, in reading order: for `make drill-serving`.

A machine without a kernel of its own takes no firewall and no kernel settings. The accounts that
the ground makes on a whole machine are made here.
"""

from pyinfra import host

from deploys import engines, gpu_limits, gpu_modes, removal, services, storage
from holdfast.site import settings_of
from tests.drill import accounts

settings = settings_of(host)

accounts.make(settings)
removal.apply(settings=settings)
gpu_modes.declare(settings=settings)
gpu_limits.apply(settings=settings)
storage.apply(settings=settings)
services.apply(settings=settings)
gpu_modes.settle(settings=settings)
engines.settle(settings=settings)
