"""Another model for one engine: `holdfast replace INVENTORY ENGINE MODEL`.

What the site's own run does when an inventory names another checkpoint, and nothing else of it. The
inventory still says the old one: write the new one there, or the next deploy goes back.
"""

import os

from pyinfra import host

from deploys import storage, vllm
from holdfast.engines.replacement import with_model
from holdfast.site import load

replaced = with_model(load(host.inventory), os.environ["ENGINE"], os.environ["MODEL"])
if host.name in replaced:
    settings = replaced[host.name]
    storage.apply(settings=settings)
    vllm.apply(settings=settings)
    vllm.settle(settings=settings)
