"""What runs on a host: units and users."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from holdfast import registry
from holdfast.checks.finding import Finding, Findings
from holdfast.settings import SERVERS, HostSettings

_SYSTEM_UNITS = re.compile(
    r"(systemd|dbus|apt|nvidia|nfs|rpc|initrd|cloud|lvm2|apparmor|audit|sshd|ufw|snapd)[-.].*"
    r"|(dbus|ssh|sshd|getty|serial-getty|console-getty|autovt|user|user-runtime-dir|modprobe"
    r"|apparmor|auditd|ufw|nftables|iptables|ip6tables|netfilter-persistent|networking|ifup"
    r"|wpa_supplicant|polkit|cron|anacron|rsyslog|tailscaled|containerd|unattended-upgrades"
    r"|emergency|rescue|debug-shell|snapd|kmod|fstrim|logrotate|dpkg-db-backup|e2scrub_all"
    r"|rc-local|sudo|rpcbind|dailyaidecheck|chrony|ntp|ntpsec|keyboard-setup|console-setup"
    r"|procps|blk-availability|multipathd|mdmonitor|qemu-guest-agent|open-vm-tools|avahi-daemon"
    r"|networkd-dispatcher|dhcpcd|ifupdown-.*|wg-quick|iscsid|open-iscsi|mdadm|zfs-.*|zed|smartd"
    r"|smartmontools|fwupd.*|packagekit|udisks2|accounts-daemon|irqbalance|thermald|acpid|syslog"
    r"|plymouth.*|kdump-tools|pve-.*|proxmox-.*|libvirtd"
    r"|pve(proxy|daemon|statd|scheduler|firewall))(@.*)?"
)


def _unit_of_another(unit: str, *, is_container: bool) -> str | None:
    """The owner of a unit that no inventory may declare; None for any other unit."""
    stem = unit.rpartition(".")[0]
    if stem.startswith("holdfast-"):
        return "Holdfast's"
    if stem == "docker":
        # A container has no unit of its own.
        return None if is_container else "the container engine's"
    if stem.endswith("@"):
        return "a template, which never runs itself"
    return "the system's" if _SYSTEM_UNITS.fullmatch(stem) else None


# Base accounts of Debian and Ubuntu, users of their daemons, and groups that are equal to root.
_SYSTEM_USERS = re.compile(
    r"root|daemon|bin|sys|sync|games|man|lp|mail|news|uucp|backup|list|irc|nobody|nogroup|_.*"
    r"|systemd-.*|messagebus|sshd|syslog|tss|uuidd|polkitd|landscape|fwupd-refresh|usbmux"
    r"|avahi.*|nvidia-persistenced|dhcpcd|pollinate|rtkit|dnsmasq|statd|tcpdump|lxd|sudo|adm"
    r"|shadow|disk|kmem|tty|kvm|docker|wheel|staff|video|render|utmp|input|sgx|crontab|plugdev"
    r"|users|netdev|dialout|cdrom|tape|ssl-cert"
)
_OWN_USERS = re.compile(rf"({'|'.join(SERVERS)}|holdfast|router|queue|clouds|tenant)-.*")


def services(settings: HostSettings) -> Findings:
    """Services with the name, unit or port of another program."""
    own = {service.unit: service.name for service in registry.declared_services(settings)[::-1]}
    for index, service in enumerate(settings.services):
        key = f"services[{index}]"
        if service.name in registry.own_names(settings):
            yield Finding(
                f"{key}.name",
                service.name,
                "Holdfast uses this name itself",
                "rename it",
            )
        is_container = service.in_container
        whose = _unit_of_another(service.unit, is_container=is_container)
        if whose and not service.is_tenant:
            yield Finding(
                f"{key}.unit",
                service.unit,
                f"this unit is {whose}",
                "name this service's own unit",
            )
        elif own[service.unit] != service.name and not is_container:
            yield Finding(
                f"{key}.unit",
                service.unit,
                f"this unit belongs to {own[service.unit]}",
                "name this service's own unit",
            )
        ports = [listen.port for listen in service.listens if listen.protocol == "tcp"]
        for field, check in (("health", service.health), ("idle", service.idle)):
            if check and (port := urlsplit(check.url).port) not in ports:
                yield Finding(
                    f"{key}.{field}.url",
                    check.url,
                    f"the service does not listen on port {port}",
                    "write one of its own ports",
                )


def users(settings: HostSettings) -> Findings:
    """Users that more than one program would use."""
    logins = {settings.ssh_user, *settings.ssh.authorised_keys} - {None}
    named = {"ssh_user": settings.ssh_user or "root"}
    named |= {f"ssh.authorised_keys.{name}": name for name in settings.ssh.authorised_keys}
    for key, name in named.items():
        if name != "root" and (_SYSTEM_USERS.fullmatch(name) or _OWN_USERS.fullmatch(name)):
            yield Finding(
                key,
                name,
                "this is a system account, and no person logs in as it",
                "name the user that you log in as",
            )
    holders: dict[str, str] = {}
    for claim in registry.user_claims(settings):
        holder = holders.setdefault(claim.user, claim.owner)
        is_own = not claim.key.endswith(".user")
        if not is_own and (claim.user in logins or _SYSTEM_USERS.fullmatch(claim.user)):
            wrong = "a service must not run as a user that people or other programs use"
        elif holder != claim.owner:
            wrong = f"{holder} already runs as this user, and each could read the other's data"
        elif not is_own and _OWN_USERS.fullmatch(claim.user):
            wrong = "this prefix is reserved for users of Holdfast"
        else:
            continue
        yield Finding(claim.key, claim.user, wrong, f"give it its own, such as svc-{claim.owner}")
