"""The virtual rack: QEMU machines, their LAN, and the verbs to run, break and look into them."""

from tests.lab.agent import Completed
from tests.lab.images import LabError, ensure_image
from tests.lab.lab import DEFAULT_DIRECTORY, Lab, destroy
from tests.lab.machine import Machine, MachineError
from tests.lab.network import Network, Traffic

__all__ = [
    "DEFAULT_DIRECTORY",
    "Completed",
    "Lab",
    "LabError",
    "Machine",
    "MachineError",
    "Network",
    "Traffic",
    "destroy",
    "ensure_image",
]
