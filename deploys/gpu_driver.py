"""The GPU driver: the right module from one origin; cards of guests are reserved."""

from __future__ import annotations

from pyinfra import host
from pyinfra.api.deploy import deploy
from pyinfra.api.operation import OperationMeta

from facts.gpu import GpuPicture
from holdfast.gpu import driver
from holdfast.gpu.driver import Unplannable
from holdfast.refusal import Refusal, Refused
from holdfast.settings import HostSettings
from operations import apt_repository, gpu_driver, host_files, units
from operations.host_files import HostFile


@deploy("GPU driver")
def apply(settings: HostSettings) -> None:
    """Install the driver for the declared cards, and continue once it runs; reboots if needed.

    Raises:
        Refused: no driver can be planned, or this machine would not load it; nothing was changed
            on any host.
    """
    gpus = settings.gpus
    if gpus is None:
        return
    picture = host.get_fact(GpuPicture)
    try:
        plan = driver.plan(
            gpus, settings.distribution, picture.nvswitches, picture.driver.running_kernel
        )
        key_enrolled = (
            driver.needs_own_key(plan, picture) and gpu_driver.state_of_host(plan).key_enrolled
        )
        driver.check_machine(plan, gpus, picture, key_enrolled)
    except Unplannable as no:
        refusal = Refusal(host.name, f"gpus.{no.key}", no.value, no.wrong, no.mend)
        raise Refused([refusal]) from None

    wanted = driver.files(plan)
    if plan.source is None:
        units.absent(name="Ask no kernel for a driver", files=list(driver.KERNELS_UNITS))
    # Before any package: the origin of packages, and the driver of each card.
    changes = [
        host_files.place(
            name="Keep one origin of the driver, and nouveau away",
            files=[
                HostFile(path, content, mode="755" if path in driver.PROGRAMS else "644")
                for path, content in wanted.items()
            ],
            absent=[path for path in driver.ALL_FILES if path not in wanted],
        )
    ]
    if plan.repository:
        changes.append(
            apt_repository.repository(
                name="Know NVIDIA's repository",
                label="nvidia-cuda",
                settings=plan.repository,
            )
        )
    gpu_driver.running(
        name="Install the driver and have it run",
        plan=plan,
        reboot=gpus.driver.reboot,
        picture=picture,
        touched=lambda: any(map(_changed, changes)),
    )


def _changed(meta: OperationMeta) -> bool:
    # While pyinfra prepares the plan, nothing has been done yet.
    return meta.did_change() if meta.is_complete() else meta.will_change
