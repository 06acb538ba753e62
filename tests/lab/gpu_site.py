"""The site's part about cards, for `test_gpu_live`: a fake rack has no driver to install."""

from pyinfra import host

from deploys import gpu_acceptance, gpu_limits
from holdfast.site import settings_of

settings = settings_of(host)

gpu_acceptance.before_driver(settings=settings)
gpu_limits.apply(settings=settings)
