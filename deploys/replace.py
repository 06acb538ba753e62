"""Replace the model of one engine: `holdfast replace INVENTORY ENGINE MODEL`.

It does what a deploy does when an inventory names another checkpoint, and nothing else. The
inventory still names the old model: change it too, or the next deploy restores the old one.
"""

import os

from pyinfra import host

from deploys import engines, storage
from holdfast.engines.replacement import with_model
from holdfast.site import load

replaced = with_model(load(host.inventory), os.environ["ENGINE"], os.environ["MODEL"])
if host.name in replaced:
    settings = replaced[host.name]
    storage.apply(settings=settings)
    engines.apply(settings=settings)
    engines.settle(settings=settings)
