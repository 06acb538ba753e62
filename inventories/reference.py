"""Six racks as people build them: what the GPU layer is planned and tested on. Data only.

docs/gpu-drivers.md shows the driver, its packages and the caps of each on every distribution. To
start from one of them, copy its dict; slots, addresses and watts are made up, the cards are not.
"""

_operator = {"ssh_user": "operator", "_sudo": True}

# Weights and backups come from and go to a NAS; the second place is somewhere else.
_nas = {
    "mounts": [
        {
            "name": "nas",
            "server": "nas.home.arpa",
            "export": "/volume1/holdfast",
            "path": "/mnt/nas",
        }
    ]
}
_offsite = {
    "name": "offsite",
    "kind": "rest",
    "user": "racks",
    "user_password": "OFFSITE_USER_PASSWORD",
    "password": "RESTIC_OFFSITE_PASSWORD",
    "append_only": True,
}
_base = {
    "timezone": "Europe/Berlin",
    "disks": [{"path": "/", "free_gib": 40}],
    "hosts": {"nas.home.arpa": "192.168.1.30"},
}

_rtx3090 = {"device": "2204", "vram_mib": 24576}
_rtx5090 = {"device": "2b85", "vram_mib": 32607}
_h200 = {"device": "2335", "vram_mib": 143771}

# Nine RTX 3090 in an open mining frame: an EPYC board with seven slots, two of them split. Three
# power supplies, of which the first feeds the board too. Risers give x16, x8 and x4.
_rack9x3090 = {
    **_operator,
    "hostname": "rack9x3090",
    "distribution": "debian13",
    "interfaces": {"enp5s0": {"role": "lan"}},
    "lan_address": "192.168.1.51",
    "base": _base,
    "tailnet": {"tags": ["tag:rack"]},
    "storage": _nas,
    "backup": {
        "repositories": [
            {
                "name": "nas",
                "kind": "path",
                "path": "/mnt/nas/backup/rack9x3090",
                "password": "RESTIC_NAS_PASSWORD",
            },
            {**_offsite, "url": "https://backup.house.example:8000/rack9x3090"},
        ],
        "paths": [{"path": "/srv/projects", "backup": "state"}],
    },
    "gpus": {
        "cards": [
            {**_rtx3090, "name": "shelf1-a", "pci_address": "0000:01:00.0", "power_cap_w": 280},
            {**_rtx3090, "name": "shelf1-b", "pci_address": "0000:21:00.0", "power_cap_w": 280},
            {**_rtx3090, "name": "shelf1-c", "pci_address": "0000:22:00.0", "power_cap_w": 280},
            {
                **_rtx3090,
                "name": "shelf2-a",
                "pci_address": "0000:41:00.0",
                "link_width": 8,
                "power_cap_w": 270,
            },
            {
                **_rtx3090,
                "name": "shelf2-b",
                "pci_address": "0000:42:00.0",
                "link_width": 8,
                "power_cap_w": 270,
            },
            {**_rtx3090, "name": "shelf2-c", "pci_address": "0000:61:00.0", "power_cap_w": 270},
            {
                **_rtx3090,
                "name": "shelf3-a",
                "pci_address": "0000:62:00.0",
                "link_width": 4,
                "power_cap_w": 250,
            },
            {
                **_rtx3090,
                "name": "shelf3-b",
                "pci_address": "0000:81:00.0",
                "link_width": 4,
                "power_cap_w": 250,
            },
            {**_rtx3090, "name": "shelf3-c", "pci_address": "0000:a1:00.0", "power_cap_w": 250},
        ],
        "machine_w": 280,
        "power_supplies": [
            {"name": "psu-1", "watts": 2000, "cards": ["shelf1-a", "shelf1-b", "shelf1-c"]},
            {"name": "psu-2", "watts": 1600, "cards": ["shelf2-a", "shelf2-b", "shelf2-c"]},
            {"name": "psu-3", "watts": 1600, "cards": ["shelf3-a", "shelf3-b", "shelf3-c"]},
        ],
    },
}

# One RTX 5090 under a desk. Its limit can be set from 400 to 600 W; the screen is on the CPU's
# own graphics.
_blackwell5090 = {
    **_operator,
    "hostname": "blackwell5090",
    "distribution": "ubuntu2404",
    "interfaces": {"enp12s0": {"role": "lan"}},
    "lan_address": "192.168.1.52",
    "base": _base,
    "ssh": {"lan_access": "keep", "lan_sources": ["192.168.1.0/24"]},
    "tailnet": {"tags": ["tag:workstation"]},
    "gpus": {
        "cards": [{**_rtx5090, "name": "desk", "pci_address": "0000:01:00.0", "power_cap_w": 450}],
        "machine_w": 200,
        "power_supplies": [{"name": "psu", "watts": 1200}],
    },
}

# Four RTX 3090 in a tower.
_quad3090 = {
    **_operator,
    "hostname": "quad3090",
    "distribution": "debian13",
    "interfaces": {"enp6s0": {"role": "lan"}},
    "lan_address": "192.168.1.53",
    "base": _base,
    "tailnet": {"tags": ["tag:rack"]},
    "storage": _nas,
    "gpus": {
        "cards": [
            {
                **_rtx3090,
                "name": "slot1",
                "pci_address": "0000:01:00.0",
                "power_cap_w": 280,
            },
            {
                **_rtx3090,
                "name": "slot2",
                "pci_address": "0000:21:00.0",
                "link_width": 8,
                "power_cap_w": 280,
            },
            {
                **_rtx3090,
                "name": "slot3",
                "pci_address": "0000:41:00.0",
                "power_cap_w": 280,
            },
            {
                **_rtx3090,
                "name": "slot4",
                "pci_address": "0000:61:00.0",
                "link_width": 8,
                "power_cap_w": 280,
            },
        ],
        "machine_w": 220,
        "power_supplies": [{"name": "psu", "watts": 2000}],
    },
}

# Eight RTX 3090 in a server's chassis, its two supplies feeding four each and not in redundancy.
_octo3090 = {
    **_operator,
    "hostname": "octo3090",
    "distribution": "debian12",
    "interfaces": {"eno1": {"role": "lan"}, "eno2": {"role": "storage"}},
    "lan_address": "192.168.1.54",
    "base": _base,
    "tailnet": {"tags": ["tag:rack"]},
    "storage": _nas,
    "gpus": {
        "cards": [
            {
                **_rtx3090,
                "name": f"slot{slot}",
                "pci_address": f"0000:{bus}:00.0",
                "power_cap_w": 250,
            }
            for slot, bus in enumerate(("01", "02", "21", "22", "41", "42", "61", "62"), start=1)
        ],
        "machine_w": 350,
        "power_supplies": [
            {"name": "psu-1", "watts": 2200, "cards": ["slot1", "slot2", "slot3", "slot4"]},
            {"name": "psu-2", "watts": 2000, "cards": ["slot5", "slot6", "slot7", "slot8"]},
        ],
    },
}

# A Proxmox host. The RTX 5090 belongs to a guest; the two RTX 3060, of two makes of chip, are the
# host's own. Proxmox's containers take the place of Docker.
_dualstack = {
    **_operator,
    "hostname": "dualstack",
    "distribution": "debian13",
    "interfaces": {"enp4s0": {"role": "lan"}},
    "lan_address": "192.168.1.55",
    "base": _base,
    "docker": None,
    "tailnet": {"tags": ["tag:rack"]},
    "gpus": {
        "cards": [
            {**_rtx5090, "name": "guest", "pci_address": "0000:01:00.0", "role": "passthrough"},
            {
                "name": "host-a",
                "device": "2504",
                "vram_mib": 12288,
                "pci_address": "0000:07:00.0",
                "link_width": 4,
                "power_cap_w": 130,
            },
            {
                "name": "host-b",
                "device": "2503",
                "vram_mib": 12288,
                "pci_address": "0000:08:00.0",
                "link_width": 4,
                "power_cap_w": 130,
            },
        ],
        "containers": False,
        "machine_w": 250,
        "power_supplies": [{"name": "psu", "watts": 1600}],
    },
}

# Eight H200 on NVIDIA's HGX board with its four NVSwitches, in a data centre's rack: its supplies
# are the building's business.
_hgxh200 = {
    **_operator,
    "hostname": "h200",
    "distribution": "ubuntu2404",
    "interfaces": {"ens20f0": {"role": "lan"}, "ens21f0": {"role": "storage"}},
    "lan_address": "192.168.1.56",
    "base": _base,
    "tailnet": {"tags": ["tag:rack"]},
    "storage": _nas,
    "gpus": {
        "cards": [{**_h200, "name": f"gpu{index}"} for index in range(8)],
        "driver": {"reboot": "never"},
    },
}

hosts = [
    ("@rack/rack9x3090", _rack9x3090),
    ("@rack/blackwell5090", _blackwell5090),
    ("@rack/quad3090", _quad3090),
    ("@rack/octo3090", _octo3090),
    ("@rack/dualstack", _dualstack),
    ("@rack/h200", _hgxh200),
]
