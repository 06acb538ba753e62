"""The configuration of sshd. Pure decisions."""

from __future__ import annotations

from collections.abc import Iterable

from facts.places import CONFIGURATION
from facts.ssh import ROLLBACK_STATE
from holdfast.render import render
from holdfast.sandbox import Directive
from holdfast.service import File, Program
from holdfast.service.capability import Declared
from holdfast.settings import HostSettings, Listen, Service

HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
"""The only key that sshd offers, and it is never replaced; every client since 2014 accepts it.
Debian's RSA key has 3072 bits, but ssh-audit demands 4096, and its ECDSA key is on a NIST curve.
Both stay on disk."""
MODULI = "/etc/ssh/moduli.holdfast"
"""A copy without the short groups. The original is a configuration file of the package, and a
change there would hold back its updates."""

KEYS = f"{CONFIGURATION}/ssh"
"""The keys of each user in the inventory, in a folder of root's. So an intruder in a login cannot
add a key, and cannot mislead root with files in the user's home."""
KEY_FILE = f"{KEYS}/%u"
"""The same path, as sshd's configuration writes it."""

ROLLBACK_SCRIPT = "/usr/local/lib/holdfast/ssh-rollback"
ROLLBACK_UNIT = "holdfast-ssh-rollback.service"
"""Restores the last proved configuration, at the deadline of a change or at an earlier boot."""

# ssh-audit's policy for Debian 12 accepts these, and paramiko 4 shares some of them.
_KEX = (
    "sntrup761x25519-sha512,sntrup761x25519-sha512@openssh.com,curve25519-sha256,"
    "curve25519-sha256@libssh.org,diffie-hellman-group16-sha512,diffie-hellman-group18-sha512,"
    "diffie-hellman-group-exchange-sha256"
)
_CIPHERS = (
    "chacha20-poly1305@openssh.com,aes256-gcm@openssh.com,aes256-ctr,aes192-ctr,"
    "aes128-gcm@openssh.com,aes128-ctr"
)
_MACS = "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,umac-128-etm@openssh.com"


def directives(settings: HostSettings, ports: list[int]) -> list[tuple[str, str]]:
    """The lines of our sshd_config, in order; ``ports`` are all ports of sshd."""
    own = settings.ssh
    return [
        *(("Port", str(port)) for port in ports),
        ("HostKey", HOST_KEY),
        ("KexAlgorithms", _KEX),
        ("Ciphers", _CIPHERS),
        ("MACs", _MACS),
        ("ModuliFile", MODULI),
        ("AuthenticationMethods", "publickey"),
        ("PubkeyAuthentication", "yes"),
        ("PasswordAuthentication", "no"),
        ("KbdInteractiveAuthentication", "no"),
        ("PermitEmptyPasswords", "no"),
        ("HostbasedAuthentication", "no"),
        ("PermitRootLogin", "no" if own.root_login == "never" else "prohibit-password"),
        # PAM opens the session (limits, systemd's user slice), but does not ask for a password.
        ("UsePAM", "yes"),
        ("MaxAuthTries", "3"),
        # zlib would parse data from the network, and large files are compressed already.
        ("Compression", "no"),
        # A multiplexing client opens a second connection when it wants more.
        ("MaxSessions", "2"),
        ("LoginGraceTime", "30"),
        ("MaxStartups", "10:30:60"),
        ("AllowAgentForwarding", "no"),
        ("AllowTcpForwarding", own.tcp_forwarding),
        ("GatewayPorts", "no"),
        ("PermitTunnel", "no"),
        ("X11Forwarding", "no"),
        ("PermitUserEnvironment", "no"),
        # Encrypted probes detect a dead client; a neighbour could forge TCP's own.
        ("TCPKeepAlive", "no"),
        ("ClientAliveInterval", "90"),
        ("ClientAliveCountMax", "2"),
        ("LogLevel", "VERBOSE"),
        ("DebianBanner", "no"),
    ]


def keyed(settings: HostSettings, present: Iterable[str]) -> list[str]:
    """The users whose keys are read only from `KEYS`: the declared ones, and those ``present``.

    A user who is no longer declared keeps the file, because the keys in that user's home are older.
    """
    return sorted({*settings.ssh.authorised_keys, *present})


def in_force(settings: HostSettings, ports: list[int]) -> set[tuple[str, str]]:
    """`directives` as ``sshd -T`` prints them."""
    spelt = {"prohibit-password": "without-password"}
    return {
        (keyword.lower(), spelt.get(value, value))
        for keyword, value in directives(settings, ports)
        # The keyword is Debian's own; Debian 12 obeys it but does not print it.
        if keyword != "DebianBanner"
    }


def ports(settings: HostSettings, came_by: int | None) -> list[int]:
    """The ports of sshd: the declared port, and the one of this login.

    So a run that moves sshd to another port keeps its own connection. A later run that logs in on
    the new port closes the old one.
    """
    return sorted({settings.ssh.port, came_by or settings.ssh.port})


def rollback_script() -> str:
    """The text of the script that keeps the proved configuration and restores it."""
    return render("ssh/ssh-rollback.j2", state=ROLLBACK_STATE, unit=ROLLBACK_UNIT)


def rollback() -> Program:
    """What restores the last proved configuration."""
    return Program(
        service=Service(name="ssh-rollback", unit=ROLLBACK_UNIT, user="root", tier="T1"),
        description="Holdfast: undo a change of sshd that no login has proved",
        kind="oneshot",
        command=(ROLLBACK_SCRIPT, "restore"),
        files=(File(ROLLBACK_SCRIPT, rollback_script(), mode="755", validate="sh -n {}"),),
        # sshd waits for it.
        start_seconds=300,
        at_boot=True,
        order=(
            Directive(
                *("ConditionPathExists", f"{ROLLBACK_STATE}/armed"),
                "It runs at boot, and at the deadline of a change.",
            ),
            Directive("DefaultDependencies", "no"),
            Directive("After", "local-fs.target"),
            Directive("Before", "ssh.socket ssh.service"),
        ),
        isolated=True,
        relaxed=(
            Directive("ReadWritePaths", "/etc/ssh", "what it restores"),
            Directive("ReadWritePaths", f"-{KEYS}", "what it restores"),
            Directive("ReadWritePaths", f"-{ROLLBACK_STATE}", "what it is to bring back"),
        ),
    )


def services(settings: HostSettings) -> list[Declared]:
    """The SSH server; its scopes are those that hold once the deploy has finished."""
    ssh = settings.ssh
    listens = []
    if settings.tailnet is not None:
        listens = [Listen(port=ssh.port, scope="tailnet", callers=ssh.callers)]
    # The storage network has no business logging in.
    lan = [name for name, link in settings.interfaces.items() if link.role != "storage"]
    if ssh.lan_access == "keep" and ssh.lan_sources and lan:
        listens += [
            Listen(port=ssh.port, scope="lan", interface=name, sources=ssh.lan_sources)
            for name in lan
        ]
    elif ssh.lan_access == "keep":
        listens.append(Listen(port=ssh.port, scope="public"))
    server = Service(name="ssh", unit="ssh.service", user="root", tier="T4", listens=listens)
    return [("ssh", server)]
