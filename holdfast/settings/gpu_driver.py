"""The settings under ``gpus.driver``.

For example::

    "gpus": {
        "cards": [{"name": "left", "device": "2204", "vram_mib": 24576}],
        "driver": {"branch": "580", "source": "vendor", "flavour": "open", "reboot": "never"},
    }
"""

from __future__ import annotations

from typing import Literal

from holdfast.settings.sources import AptRepository
from holdfast.types import DriverBranch, Model


class GpuDriver(Model):
    """The kernel module and user space that make the cards usable."""

    branch: DriverBranch = "580"
    source: Literal["auto", "distribution", "vendor"] = "auto"
    """``auto``: the distribution's packages if they support every declared card."""
    flavour: Literal["auto", "open", "proprietary"] = "auto"
    """``auto``: the open modules if every declared card supports them."""
    repository: AptRepository | None = None
    """A mirror of the vendor's repository; only where the vendor's packages are used."""
    reboot: Literal["when-needed", "never"] = "when-needed"
    """``when-needed``: one announced reboot when the loaded module is not the installed one."""
