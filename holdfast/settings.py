"""What an inventory may say about a host: every key, its type, unit and default.

An inventory is data; these models are its grammar. `holdfast.site.load` parses every host with
them before the first connection and refuses what cannot work.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from holdfast.services import Cloud, DataPath, Peer, Service, Tier
from holdfast.types import (
    AbsolutePath,
    Address,
    Calendar,
    Caller,
    Cidr,
    CloudUrl,
    ControllerPath,
    CpuList,
    DnsName,
    DriverBranch,
    Figure,
    FileName,
    Fingerprint,
    FlagName,
    GpuUuid,
    HostLabel,
    HostOrAddress,
    Interface,
    Locale,
    LoginHost,
    Model,
    Name,
    PackagePrefix,
    PciAddress,
    PciDevice,
    PinnedUrl,
    Port,
    PublicKey,
    Reason,
    SecretName,
    Sentence,
    Sha256,
    Source,
    Suite,
    Tag,
    TailnetGroup,
    TailnetUser,
    Text,
    Timezone,
    Url,
    UserName,
    Version,
    Watts,
)

Distribution = Literal["debian12", "debian13", "ubuntu2404", "ubuntu2604"]


class Artefact(Model):
    """Something downloaded: pinned by version and checksum, never ``latest``."""

    version: Version
    url: PinnedUrl
    sha256: Sha256


class AptRepository(Model):
    """A signed APT repository: the vendor's, or a mirror of it."""

    url: Url
    key_url: Url
    key_sha256: Sha256 | None = None
    """Checksum of the key file."""
    key_fingerprint: Fingerprint | None = None
    """Of the one key whose signature apt accepts; the file may hold others."""
    suite: Suite
    components: list[Name] = ["main"]
    """A flat repository, whose suite ends in ``/``, has none."""


class NetworkInterface(Model):
    """A physical interface and what is behind it; all of them count as external to the firewall."""

    role: Literal["lan", "management", "storage"]


class DiskCheck(Model):
    """Space that must be there before anything is installed."""

    path: AbsolutePath
    free_gib: float = Field(gt=0, allow_inf_nan=False)


class Base(Model):
    """The ground every other capability stands on."""

    timezone: Timezone = "Etc/UTC"
    locale: Locale = "C.UTF-8"
    ntp_servers: list[HostOrAddress] = []
    """Empty: the distribution's pool."""
    hosts: dict[DnsName, Address] = {}
    """Names that DNS does not know, written to /etc/hosts."""
    trusted_cas: dict[Name, ControllerPath] = {}
    """Name to PEM file on the controller: private authorities this host must trust."""
    disks: list[DiskCheck] = [DiskCheck(path="/", free_gib=4)]
    apt_lock_timeout_seconds: int = Field(default=300, ge=0, le=3600)
    journal_max_mib: int = Field(default=1024, ge=64)
    held_back: list[PackagePrefix] = ["nvidia-", "libnvidia-", "linux-modules-nvidia-"]
    """Package name prefixes that unattended upgrades must not touch: user space that moves under
    a loaded kernel module breaks NVML until the next reboot. Where Ubuntu's ready-made modules
    drive the cards, kernels are held with them; without linux-modules-nvidia- neither is."""


class Ssh(Model):
    """Who may log in, and from where."""

    port: Port = 22
    root_login: Literal["never", "key"] = "never"
    authorised_keys: dict[UserName, list[PublicKey]] = {}
    """User to the keys that may log in as that user, and no others: they are in root's
    `/etc/holdfast/ssh`, and sshd does not read `~/.ssh/authorized_keys` of that user any more. A
    user that is not named keeps what it has."""
    lan_access: Literal["until-tailnet", "keep"] = "until-tailnet"
    """``until-tailnet`` closes SSH on the LAN once a tailnet login has succeeded."""
    lan_return: bool = True
    """Whether the host opens SSH to ``lan_sources`` again while it has lost its tailnet
    (``tailnet.lost_minutes``). False: the console is then the only way in."""
    lan_sources: list[Cidr] = []
    """Networks SSH is open to while it is open on the LAN; empty means any."""
    callers: list[Caller] = []
    """Who may log in over the tailnet; empty: every member who holds a key."""
    tcp_forwarding: Literal["no", "local", "yes"] = "local"
    """What a login may tunnel. ``local``, as ``ssh -L`` and jumping need it, lets an operator reach
    a loopback service and a training tool its job; it gives a user no more than a shell does."""


class Opening(Model):
    """A hole in the firewall that no declared service explains."""

    port: Port
    protocol: Literal["tcp", "udp"] = "tcp"
    sources: list[Cidr] = Field(min_length=1)
    interface: Interface | None = None
    container: bool = False
    """The port is published by Docker: it is opened in DOCKER-USER, not in INPUT."""
    public: bool = False
    """Must be said when ``sources`` holds the whole internet."""
    reason: Reason


class Firewall(Model):
    """UFW, default deny, IPv4 and IPv6, Docker included."""

    openings: list[Opening] = []
    rollback_seconds: int = Field(default=180, ge=30, le=3600)
    """How long a change of the firewall or of SSH waits for proof of a new login before it undoes
    itself, seconds."""


class DockerNetwork(Model):
    """A network for containers, all of which the kernel holds to its tier."""

    name: Name = Field(max_length=12)
    """What `docker run --network` and compose files call it; its bridge is ``br-NAME``."""
    tier: Tier
    peers: list[Peer] = []
    """Whom its containers call. Those of T1 reach these and each other alone; those of another
    tier are held to these once there are some."""
    clouds: list[Cloud] = []
    """Names on the internet that its containers call, unless they are T1; with some, they reach no
    other."""
    subnets: list[Cidr] = Field(default=[], max_length=2)
    """A private network each for IPv4 and IPv6. Docker chooses where there is none of IPv4; with
    none of IPv6 its containers have no IPv6."""


class Docker(Model):
    """The container engine."""

    source: Literal["vendor", "distribution"] = "vendor"
    repository: AptRepository | None = None
    """A mirror of the vendor's repository; only with ``source="vendor"``."""
    log_max_mib: int = Field(default=10, ge=1)
    log_max_files: int = Field(default=3, ge=1)
    dns: list[Address] = []
    """Resolvers that containers ask, from where they are. Empty: whom the host asks, by the engine
    itself where containers cannot reach them."""
    networks: list[DockerNetwork] = []
    """Networks whose containers are held to a tier; nothing holds those on others."""


class Tailnet(Model):
    """The private network that is the only way in."""

    hostname: HostLabel | None = None
    """Defaults to the host's name."""
    repository: AptRepository | None = None
    """A mirror of the vendor's repository."""
    control_server: Url | None = None
    """A headscale; Tailscale's own when absent."""
    relays: list[Cloud] = []
    """Where the relays (DERP) of a ``control_server`` answer, beside that server itself."""
    auth_key: SecretName | None = "TAILSCALE_AUTH_KEY"
    """Joins the host, once. None: it is a member already, and is refused where it is not."""
    tags: list[Tag] = []
    """What it is to the tailnet's policy; hosts of one tag are one."""
    other_tags: list[Tag] = []
    """Tags of machines that are no hosts of this inventory, for ``callers`` to name."""
    groups: dict[TailnetGroup, list[TailnetUser]] = {}
    """Groups for ``callers`` to name, and who is in each. Like ``other_tags`` they hold for all
    hosts of the inventory, wherever they are declared."""
    key_may_expire: bool = False
    """Whether SSH may leave the LAN although the host's node key ends one day. An operator must
    then renew it in time."""
    key_warning_days: int = Field(default=14, ge=1, le=180)
    """How long before the end of its node key a host raises an alert, days."""
    lost_minutes: int = Field(default=30, ge=1, le=1440)
    """How long a host must be no member before it raises an alert and opens SSH on the LAN again,
    and a member before it closes it, minutes."""
    port: Port = 41641
    join_timeout_seconds: int = Field(default=60, ge=10, le=600)
    accept_dns: bool = True


class NfsMount(Model):
    """One NFS 4.2 export, mounted on first use and released when idle."""

    name: Name
    server: HostOrAddress
    export: AbsolutePath
    path: AbsolutePath
    read_only: bool = False
    timeout_seconds: int = Field(default=30, ge=5, le=300)
    """How long a mount attempt may take."""
    idle_seconds: int = Field(default=600, ge=0)
    """Unmounted after this long without use; 0 keeps it mounted."""


class ModelFile(Model):
    """A model's weights on local disk, copied from the NAS or downloaded, proved by checksum."""

    name: Name
    source: Source
    """A URL, or a path on a declared mount."""
    sha256: Sha256
    size_mib: float = Field(gt=0, allow_inf_nan=False)
    filename: FileName


class Checkpoint(Model):
    """A model as vLLM reads it: a folder on local disk, every file of it proved by one checksum."""

    name: Name
    source: Source
    """The folder's URL, or its path on a declared mount. It holds ``SHA256SUMS``, which
    ``sha256sum *`` prints, beside the files."""
    sha256: Sha256
    """Of ``SHA256SUMS``."""
    size_mib: float = Field(gt=0, allow_inf_nan=False)
    """All files together, MiB."""
    description: ControllerPath
    """A folder on the controller with the model's config.json and model.safetensors.index.json (or
    the weights themselves): what tells before the first connection whether it fits."""


class Storage(Model):
    """What lives on the NAS and what is kept on local disk."""

    mounts: list[NfsMount] = []
    models: list[ModelFile] = []
    checkpoints: list[Checkpoint] = []
    models_path: AbsolutePath = "/var/lib/holdfast/models"
    models_check_schedule: Calendar = "Sat *-*-* 02:30:00"
    """When every model is compared with its checksum again, at low priority."""


class Floor(Model):
    """The model that always answers: llama.cpp on the CPU."""

    release: Artefact
    """An archive laid out as llama.cpp's releases are: one folder that holds ``llama-server``."""
    model: Name
    """A model declared under ``storage.models``."""
    port: Port = 8080
    scope: Literal["loopback", "tailnet"] = "tailnet"
    callers: list[Caller] = []
    """Who on the tailnet may call it; empty: every member."""
    api_key: SecretName = "FLOOR_API_KEY"
    context_tokens: int = Field(default=4096, ge=128)
    threads: int = Field(default=4, ge=1)
    memory_max_mib: int = Field(default=8192, ge=64)


class Repository(Model):
    """A place restic writes to."""

    name: Name
    kind: Literal["path", "rest"]
    path: AbsolutePath | None = None
    """For ``path``: a directory on a declared mount or another disk."""
    url: Url | None = None
    """For ``rest``: the rest-server, without credentials."""
    user: Name | None = None
    user_password: SecretName | None = None
    password: SecretName
    """Encrypts the repository; keep a copy off the host."""
    append_only: bool = False
    """The server forbids deletion, so old snapshots are pruned from elsewhere."""


class Backup(Model):
    """restic, two places, and a restore that is run."""

    restic: Artefact | Literal["distribution"] = "distribution"
    """A ``restic`` binary compressed with bzip2 as upstream releases it, or the distribution's."""
    repositories: list[Repository] = Field(min_length=1)
    single_place_waiver: Sentence | None = Field(default=None, min_length=10, max_length=200)
    """Why one repository is enough here; without it two are required."""
    paths: list[DataPath] = []
    """Data beside what the declared services own."""
    schedule: Calendar = "*-*-* 03:30:00"
    restore_check_schedule: Calendar = "Sun *-*-* 05:00:00"
    max_age_hours: int = Field(default=26, ge=1)
    """A newest snapshot older than this is an alert."""
    max_restore_age_days: int = Field(default=15, ge=1)
    """A last good restore older than this is an alert: two runs of the schedule, and a day."""
    keep_daily: int = Field(default=7, ge=1)
    keep_weekly: int = Field(default=5, ge=0)
    keep_monthly: int = Field(default=12, ge=0)


class GpuCard(Model):
    """One NVIDIA card that must be there, as its owner bought and plugged it."""

    name: Name
    """What its owner calls it, for every message: the slot, the riser, the shelf."""
    device: PciDevice
    """Which card it is: ``2204`` is a GeForce RTX 3090."""
    vram_mib: int = Field(ge=1024)
    """Memory as ``nvidia-smi`` counts it, MiB; cards reserve a little, so 1 % is tolerated."""
    uuid: GpuUuid | None = None
    """The one card meant, once known (`make gpus`); what a cap or an engine is tied to."""
    pci_address: PciAddress | None = None
    """The slot it is in, once known."""
    link_width: Literal[1, 2, 4, 8, 16] = 16
    """PCIe lanes that its slot and riser give it."""
    power_cap_w: Watts | None = None
    """Power limit, W, within the card's own range; its default when absent."""
    clock_max_mhz: int | None = Field(default=None, ge=210, le=4000)
    """Highest graphics clock, MHz: for cards whose lowest power limit is still too much."""
    role: Literal["compute", "passthrough"] = "compute"
    """``passthrough`` belongs to a guest: bound to vfio-pci, and no driver here touches it."""


class GpuDriver(Model):
    """The kernel module and user space that make the cards usable."""

    branch: DriverBranch = "580"
    source: Literal["auto", "distribution", "vendor"] = "auto"
    """``auto`` takes the distribution's packages where they drive every declared card."""
    flavour: Literal["auto", "open", "proprietary"] = "auto"
    """``auto`` takes the open modules wherever every declared card can use them."""
    repository: AptRepository | None = None
    """A mirror of the vendor's repository; only where the vendor's packages are used."""
    reboot: Literal["when-needed", "never"] = "when-needed"
    """``when-needed`` reboots once, announced, when the loaded module is not the installed one."""


class PowerSupply(Model):
    """One power supply and the cards that hang on it."""

    name: Name
    watts: int = Field(ge=100, le=20000)
    """What its label promises, W."""
    cards: list[Name] = []
    """Cards it feeds; empty: whichever no other supply names."""


class Mode(Model):
    """What a set of cards is for while this mode is in force."""

    name: Name = Field(max_length=24)
    """The argument of `holdfast-mode`; no two modes of a host share it."""
    services: list[Name] = []
    """Engines of vLLM and declared services that run in it. What no mode of the set names runs in
    all of them; none at all leaves the cards to any program."""
    power_caps_w: dict[Name, Watts] = {}
    """Card to power limit in this mode, W; a card that is not named keeps its own."""


class CardSet(Model):
    """Cards that serve one purpose at a time."""

    name: Name = Field(max_length=24)
    cards: list[Name] = Field(min_length=1)
    """Cards declared under ``gpus.cards``; a card belongs to one set."""
    modes: list[Mode] = Field(min_length=2)
    """Exactly one is in force."""
    default: Name
    """The mode after every boot."""


class Gpus(Model):
    """The machine's NVIDIA cards, believed only after a check."""

    cards: list[GpuCard] = Field(min_length=1)
    driver: GpuDriver = GpuDriver()
    power_supplies: list[PowerSupply] = []
    """Empty: the power budget is not checked."""
    machine_w: int = Field(default=200, ge=0)
    """What the machine draws beside its cards, from the first supply, W."""
    card_sets: list[CardSet] = []
    """Cards whose services take turns; empty: everything runs at once."""
    containers: bool = True
    """Whether containers may use the cards (NVIDIA's container toolkit, by CDI)."""
    container_toolkit_repository: AptRepository | None = None
    """A mirror of the vendor's repository of the container toolkit."""


class Engine(Model):
    """One vLLM server: a checkpoint on named cards."""

    name: Name = Field(max_length=24)
    """Its units and its user are called ``holdfast-vllm-NAME`` and ``vllm-NAME``."""
    checkpoint: Name
    """A model declared under ``storage.checkpoints``."""
    task: Literal["generate", "embed"] = "generate"
    chat: bool = True
    """Whether it answers chats, for which its checkpoint needs a chat template. False for a base
    model: its doors then pass `/v1/completions` alone, and nothing else is asked for its proof."""
    cards: list[Name] = []
    """Cards declared under ``gpus.cards``, which share the model (tensor parallel). Empty: the CPU,
    with a lock of vLLM's CPU build."""
    peer_access: bool | None = None
    """Whether its cards read one another's memory. False: by host memory instead
    (NCCL_P2P_DISABLE=1), the cure where cards without NVLink hang. None leaves it to NCCL."""
    port: Port
    scope: Literal["loopback", "tailnet"] = "loopback"
    callers: list[Caller] = []
    """Who on the tailnet may call it; empty: every member."""
    api_key: SecretName
    context_tokens: int = Field(ge=16)
    """Prompt and answer together (--max-model-len)."""
    concurrent_requests: int = Field(default=16, ge=1)
    """Requests that run at once (--max-num-seqs); more wait."""
    utilisation: float = Field(default=0.80, gt=0, le=0.97)
    """Share of each card's memory the engine may take; more than 0.80 needs a reason."""
    utilisation_reason: Sentence | None = Field(default=None, min_length=10, max_length=200)
    """Why this engine may take more than 0.80: what else the card would do with the rest."""
    cache_mib: int | None = Field(default=None, ge=1024, multiple_of=1024)
    """Memory of the KV cache on the CPU, MiB in whole GiB; on cards what the utilisation leaves."""
    kv_dtype: Literal["auto", "fp8"] = "auto"
    """Format of the KV cache (--kv-cache-dtype)."""
    flags: dict[FlagName, bool | int | Figure | Text] = {}
    """Further flags of `vllm serve`, without the leading dashes; False is `--no-` of one."""
    memory_max_mib: int = Field(default=32768, ge=1024)
    """Host memory, MiB."""
    cpus: CpuList | None = None
    """The CPUs it may run on, so that the floor has the others to itself; all when absent."""
    start_seconds: int = Field(default=1800, ge=60, le=14400)
    """How long loading may take until the first completion, seconds."""
    stall_seconds: int = Field(default=300, ge=60, le=3600)
    """An engine that has requests and counts no tokens for so long is ended and started again."""


class Vllm(Model):
    """vLLM: one pinned environment, and an engine for each model."""

    lock: ControllerPath | None = None
    """Requirements with hashes; None: `locks/vllm.txt`, which the project is tested with."""
    packages: Url | None = None
    """A mirror of the Python package index; PyPI when absent."""
    engines: list[Engine] = Field(min_length=1)


class Queue(Model):
    """Requests that wait on disk, through restarts too, until something can answer them."""

    entries: int = Field(default=500, ge=1, le=100000)
    """Requests and answers kept at once; when it is full, further requests get 503 with
    ``Retry-After``."""
    concurrent_requests: int = Field(default=1, ge=1, le=64)
    """Requests that are asked at once when something answers again, the oldest first."""
    max_age_minutes: int = Field(default=60, ge=1)
    """A request that has waited longer is an alert, minutes."""
    keep_hours: int = Field(default=24, ge=1, le=720)
    """How long an answer can be fetched before it is removed, hours."""


class Provider(Model):
    """One model of one cloud, and what it costs."""

    name: Name
    """What answers call it (X-Holdfast-Engine), and keys that may use it."""
    api: Literal["openai", "anthropic"] = "openai"
    """What it speaks: OpenAI's chat completions, or Anthropic's messages."""
    base_url: CloudUrl
    """What its paths are appended to: for ``openai`` this ends in ``/v1`` as a rule."""
    model: Text
    """What the cloud calls it; callers do not choose it."""
    api_key: SecretName
    input_usd: float = Field(gt=0, allow_inf_nan=False)
    """Price of a million tokens of the prompt, USD."""
    output_usd: float = Field(gt=0, allow_inf_nan=False)
    """Price of a million tokens of the answer, USD."""
    max_tokens: int = Field(default=4096, ge=1)
    """Longest answer, tokens: what a request without a limit gets, and no request gets more."""


class Clouds(Model):
    """Models of others, which routers of profile ``personal`` and ``cloud`` may ask by LiteLLM."""

    packages: Url | None = None
    """A mirror of the Python package index; PyPI when absent."""
    providers: list[Provider] = Field(min_length=1)


class CallerKey(Model):
    """What one person or agent sends to a router that leads to clouds."""

    name: Name = Field(max_length=24)
    """Whose it is; the ledger counts by this name."""
    api_key: SecretName
    clouds: list[Name] = []
    """Which of the router's clouds it may use; none: local work only."""
    budget_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """What it may spend on clouds in a period, USD; required with ``clouds``."""
    period: Literal["day", "week", "month"] = "month"
    """When the budget starts again: at midnight, on Monday or on the 1st, by ``base.timezone``."""


class Router(Model):
    """One address for a chain of engines, tried in order."""

    name: Name = Field(max_length=24)
    """Its units and its user are called ``holdfast-router-NAME`` and ``router-NAME``."""
    profile: Literal["private", "client", "personal", "cloud"]
    """``private`` goes on to the next in the chain; ``client`` has one engine and else an error.
    ``personal`` goes on to clouds after engines and floor; ``cloud`` has clouds alone."""
    port: Port
    scope: Literal["loopback", "tailnet"] = "loopback"
    callers: list[Caller] = []
    """Who on the tailnet may call it; empty: every member."""
    api_key: SecretName | None = None
    """What callers of a ``private`` or ``client`` router must send; each engine's own key stays on
    this host."""
    keys: list[CallerKey] = []
    """What callers of a ``personal`` or ``cloud`` router must send, each their own."""
    engines: list[Name] = []
    """Engines declared under ``vllm.engines``, in the order in which they are tried."""
    floor: bool = False
    """Whether the floor answers when no engine does."""
    clouds: list[Name] = []
    """Providers declared under ``clouds.providers``, in the order in which they are tried when no
    engine and no floor answers."""
    queue: Queue | None = None
    """None: when nothing answers that is an error at once."""


class HostSettings(Model):
    """Everything an inventory says about one host."""

    hostname: HostLabel
    """The name it gives itself."""
    distribution: Distribution
    interfaces: dict[Interface, NetworkInterface] = Field(min_length=1)
    """Its physical network interfaces, by the name the kernel gives them."""
    base: Base = Base()
    ssh: Ssh = Ssh()
    firewall: Firewall = Firewall()
    docker: Docker | None = Docker()
    """None: no container engine."""
    tailnet: Tailnet | None = Tailnet()
    """None: no tailnet; then SSH must stay open on the LAN."""
    gpus: Gpus | None = None
    """None: no NVIDIA card is managed here."""
    storage: Storage = Storage()
    floor: Floor | None = None
    """None: no floor."""
    vllm: Vllm | None = None
    """None: no engine of vLLM."""
    clouds: Clouds | None = None
    """None: nothing here asks a model of somebody else's."""
    routers: list[Router] = []
    """Addresses for work: what each chain may reach is said by its profile."""
    backup: Backup | None = None
    """None: nothing is backed up."""
    services: list[Service] = []
    """Services beside those the capabilities declare."""

    lan_address: LoginHost | None = None
    """Where the host answers before it has joined the tailnet."""
    ssh_hostname: LoginHost | None = None
    """Its name on the tailnet; the inventory's name for it when absent."""
    ssh_user: UserName | None = None
    """Who logs in; your own SSH configuration decides when absent."""
    ssh_port: Port | None = None
    """Where the login knocks, when your SSH configuration does not say."""
    ssh_key: ControllerPath | None = None
    """The private key of the login; keys of the agent and of ~/.ssh when absent."""
    ssh_config_file: ControllerPath | None = None
    """An SSH configuration in place of ~/.ssh/config."""
    ssh_known_hosts_file: ControllerPath | None = None
    """Known host keys in place of ~/.ssh/known_hosts."""
    ssh_strict_host_key_checking: Literal["yes", "accept-new"] = "accept-new"
    """``accept-new`` trusts a host it has never seen; a changed key is refused by both."""
    sudo: bool = Field(default=False, alias="_sudo")
    """Whether ``ssh_user`` becomes root by sudo, without a password."""
