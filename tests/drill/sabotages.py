"""What a hand, a package or an intruder may do to a rack, and the host tests that must tell."""

from __future__ import annotations

from facts import ssh
from facts.firewall import GUARD, ROLLBACK_STATE
from facts.gpu_modes import GREETING
from facts.places import CREDENTIALS
from holdfast import (
    backup,
    docker_networks,
    egress,
    firewall,
    floor,
    integrity,
    ledger,
    tailnet_membership,
    tailnet_rules,
)
from holdfast.docker import DAEMON_JSON
from holdfast.firewall import DOCKER_USER
from holdfast.gpu import containers, driver, limits, modes
from holdfast.routing import LEDGER_DUMPS
from holdfast.sandbox import RUN
from holdfast.settings import DockerNetwork
from operations.sshd import DROP_IN as SSHD
from tests.doubles import guest
from tests.drill.not_here import ELSEWHERE
from tests.drill.sabotage import Sabotage, configured, edited, lying, rewritten
from tests.lab.artefacts.container import IMAGE

_CORES = "/etc/systemd/system.conf.d/zz-stray.conf"
_ZONE = "/etc/localtime"
_MODEL = "/var/lib/holdfast/models/tiny.gguf"
_CHECKPOINTS = "/var/lib/holdfast/models/*-????????????"
_MOUNT = "/etc/systemd/system/mnt-nas.mount"
_REMOUNT = "systemctl daemon-reload && systemctl stop mnt-nas.mount"
_BARE = "mkdir -p /run/bare && mount --bind / /run/bare && chattr {} /run/bare/mnt/nas; umount {}"
_RELOAD_SSH = "systemctl reload ssh"
_NAS = f"{backup.STATE}/nas.json"
_LOOSE_DOCKER = rewritten(DAEMON_JSON, "value |= {'ip': '0.0.0.0', 'log-opts': {}}")


_ALL_STOPPED = (
    "docker ps --quiet >> /root/running && xargs --no-run-if-empty docker stop < /root/running"
)
"""A running container keeps the bridge as it was made, over a restart of the engine."""
_SEALED = DockerNetwork(name="sealed-net", tier="T1", subnets=["fd99:8::/64"])
"""As `inventories/drill.py` declares it."""


def _recreated(creation: str) -> str:
    """Shell text that makes the sealed network again by ``creation``, with the containers on it."""
    name = _SEALED.name

    def each(verb: str) -> str:
        return f"for id in $on; do docker network {verb} {name} $id || exit 1; done"

    return (
        f"on=$(docker ps --quiet --filter network={name}); {each('disconnect')};"
        f" docker network rm {name} && {creation} && {{ {each('connect')}; }}"
    )


def _both(rule: str, six: str | None = None) -> str:
    return f"iptables {rule} && ip6tables {six or rule}"


def _unwatched(hurt: str, heal: str) -> tuple[str, str]:
    """``hurt`` and ``heal`` for rules of the firewall, which its watch would put back."""
    timer = firewall.TIMER
    # A look that is under way as well: a timer that is started may look at once.
    return (
        f"systemctl stop {timer} {firewall.WATCH} && {hurt}",
        f"{heal} && systemctl start {timer}",
    )


BASE = (
    Sabotage(
        "the machine runs another release",
        ("base::the_host_is_the_one_the_inventory_means",),
        *edited("/etc/os-release", "s/^VERSION_ID=.*/VERSION_ID=11/"),
    ),
    Sabotage(
        "a unit of ours fails in silence",
        ("base::every_unit_of_ours_raises_an_alert_when_it_fails",),
        *edited(
            f"/etc/systemd/system/{egress.SERVICE}", "/^OnFailure=/d", "systemctl daemon-reload"
        ),
    ),
    Sabotage(
        "its name is another after a boot",
        ("base::its_name_survives_a_reboot",),
        *edited("/etc/hostname", "s/.*/stray/"),
    ),
    Sabotage(
        "a declared name leads elsewhere",
        ("base::declared_names_resolve",),
        *edited("/etc/hosts", "s/^10.0.2.2\\(.*offsite\\)/10.0.2.9\\1/"),
    ),
    Sabotage(
        "its clock shows another zone",
        ("base::time_zone_and_locale",),
        f"cp -a {_ZONE} /root/zone && ln -sfn /usr/share/zoneinfo/Pacific/Apia {_ZONE}",
        f"rm {_ZONE} && mv /root/zone {_ZONE}",
    ),
    Sabotage(
        "nobody keeps the clock",
        ("base::the_clock_is_set_from_the_declared_servers",),
        "systemctl stop systemd-timesyncd",
        "systemctl start systemd-timesyncd",
    ),
    Sabotage(
        "upgrades may reboot it",
        ("base::security_updates_come_by_themselves_and_leave_the_gpu_alone",),
        "echo 'Unattended-Upgrade::Automatic-Reboot \"true\";' > /etc/apt/apt.conf.d/99stray",
        "rm /etc/apt/apt.conf.d/99stray",
    ),
    Sabotage(
        "the journal's bound is another",
        ("base::the_journal_of_this_boot_is_on_disk_and_bounded",),
        "printf '[Journal]\\nSystemMaxUse=9G\\n' > /etc/systemd/journald.conf.d/zz-stray.conf",
        "rm /etc/systemd/journald.conf.d/zz-stray.conf",
    ),
    Sabotage(
        "a service's user is given a shell",
        ("base::service_users_exist_and_cannot_log_in",),
        "usermod --shell /bin/bash holdfast-floor",
        "usermod --shell /usr/sbin/nologin holdfast-floor",
    ),
    Sabotage(
        "a private authority is gone",
        ("base::private_authorities_are_trusted",),
        *edited("/usr/local/share/ca-certificates/holdfast/lab.crt", "d"),
    ),
)

HARDENING = (
    Sabotage(
        "kernel addresses are shown",
        ("hardening::kernel_settings_are_in_force",),
        "sysctl --write kernel.kptr_restrict=0",
        "sysctl --write kernel.kptr_restrict=2",
    ),
    Sabotage(
        "an interface takes redirects",
        ("hardening::no_interface_takes_or_sends_redirects",),
        "sysctl --write net.ipv4.conf.eth1.accept_redirects=1",
        "sysctl --write net.ipv4.conf.eth1.accept_redirects=0",
    ),
    Sabotage(
        "an unused protocol may be loaded",
        ("hardening::unused_protocols_cannot_be_loaded",),
        *edited("/etc/modprobe.d/holdfast.conf", "/^install sctp/d"),
    ),
    Sabotage(
        "crashed programs leave their memory",
        ("hardening::memory_does_not_land_on_disk",),
        f"printf '[Manager]\\nDefaultLimitCORE=infinity\\n' > {_CORES} && systemctl daemon-reload",
        f"rm {_CORES} && systemctl daemon-reload",
    ),
    Sabotage(
        "anybody may write into configuration",
        ("hardening::only_root_can_change_configuration",),
        "touch /etc/stray && chmod 666 /etc/stray && mkdir --mode=777 /srv/stray",
        "rm /etc/stray && rmdir /srv/stray",
    ),
    Sabotage(
        "password hashes can be read",
        ("hardening::secrets_of_the_system_are_root_s",),
        "chmod 644 /etc/shadow",
        "chmod 640 /etc/shadow",
    ),
    Sabotage(
        "there is a second root",
        ("hardening::root_is_alone_and_every_account_has_a_lock",),
        *edited("/etc/passwd", "$a stray:x:0:0::/:/bin/sh"),
    ),
    Sabotage(
        "nobody keeps the record",
        ("hardening::a_change_of_configuration_is_on_record",),
        "pkill -x auditd; while systemctl is-active --quiet auditd; do sleep 0.2; done",
        "systemctl start auditd",
    ),
    Sabotage(
        "nothing is put on record any more",
        ("hardening::a_change_of_configuration_is_on_record",),
        "auditctl -D",
        "augenrules --load",
    ),
    Sabotage(
        "the kernel's audit is off",
        ("hardening::a_change_of_configuration_is_on_record",),
        "auditctl -e 0",
        "auditctl -e 1",
    ),
    Sabotage(
        "no program is confined",
        ("hardening::programs_are_confined",),
        "mount --bind /dev/null /sys/kernel/security/apparmor/profiles",
        "umount /sys/kernel/security/apparmor/profiles",
    ),
    Sabotage(
        "a unit has failed",
        ("hardening::no_unit_has_failed",),
        "systemd-run --quiet --wait --unit=stray false; true",
        # Failed units are forgotten before each end.
        "true",
    ),
    Sabotage(
        "nobody looks for what changed",
        ("hardening::changes_are_reported_every_day",),
        f"systemctl stop {integrity.TIMER}",
        f"systemctl start {integrity.TIMER}",
    ),
    Sabotage(
        "a person's files are everybody's",
        ("hardening::a_person_s_new_files_are_their_own",),
        *edited("/etc/profile.d/holdfast.sh", "s/umask 027/umask 022/"),
    ),
)

SANDBOX = (
    Sabotage(
        "a unit's walls are taken down",
        ("sandbox::systemd_finds_every_unit_as_closed_as_declared",),
        *configured(
            integrity.SERVICE,
            [
                *("ProtectSystem=no", "CapabilityBoundingSet=~", "PrivateNetwork=no"),
                *("SystemCallFilter=", "PrivateDevices=no"),
            ],
        ),
    ),
    Sabotage(
        "systemd leaves IPAddressDeny= out",
        ("sandbox::the_kernel_enforces_what_units_may_reach",),
        *lying(
            "systemd-run",
            'for word; do case $word in IPAddress*) word=Description=stray ;; esac; set -- "$@"'
            ' "$word"; shift; done; exec /usr/bin/systemd-run "$@"',
        ),
    ),
)

SSH = (
    Sabotage(
        "a file read before ours opens sshd",
        (
            "ssh::it_offers_no_weak_algorithm",
            "ssh::it_does_not_reveal_its_patch_level",
            "ssh::a_weak_key_exchange_is_refused",
            "ssh::a_key_is_the_only_way_in",
            "ssh::root_logs_in_only_where_the_inventory_says_so",
            "ssh::it_listens_on_the_declared_port_only",
            "ssh::a_good_key_lets_a_user_in_and_root_only_where_it_may",
        ),
        f"cat > $(dirname {SSHD})/00-a-stray.conf <<'END'\n"
        "Port 2222\nKexAlgorithms +ecdh-sha2-nistp256\nDebianBanner yes\n"
        "PasswordAuthentication yes\nPermitRootLogin yes\n"
        f"END\n{_RELOAD_SSH}",
        f"rm $(dirname {SSHD})/00-a-stray.conf && {_RELOAD_SSH}",
    ),
    Sabotage(
        "a user has a key that nobody declared",
        ("ssh::declared_users_have_exactly_their_declared_keys",),
        *edited("/etc/holdfast/ssh/operator", "$a ssh-ed25519 AAAA stray"),
    ),
    Sabotage(
        "a change of sshd was never proved",
        ("ssh::no_change_waits_for_its_proof",),
        f"mkdir -p {ssh.ROLLBACK_STATE} && touch {ssh.ROLLBACK_STATE}/armed",
        f"rm -r {ssh.ROLLBACK_STATE}",
    ),
    Sabotage(
        "no boot undoes a change of sshd",
        ("ssh::a_boot_undoes_what_was_not_proved",),
        "systemctl disable holdfast-ssh-rollback.service",
        "systemctl enable holdfast-ssh-rollback.service",
    ),
)

FIREWALL = (
    Sabotage(
        "what nobody declared is let in",
        ("firewall::undeclared_packets_are_dropped",),
        *_unwatched(_both("-P INPUT ACCEPT"), _both("-P INPUT DROP")),
    ),
    Sabotage(
        "a port is opened by hand",
        ("firewall::the_kernel_accepts_exactly_the_declared_ports",),
        *_unwatched(
            _both(
                "-A ufw-user-input -p tcp --dport 2222 -j ACCEPT",
                "-A ufw6-user-input -p tcp --dport 2222 -j ACCEPT",
            ),
            _both(
                "-D ufw-user-input -p tcp --dport 2222 -j ACCEPT",
                "-D ufw6-user-input -p tcp --dport 2222 -j ACCEPT",
            ),
        ),
    ),
    Sabotage(
        "ufw lets mDNS in",
        ("firewall::ufw_accepts_nothing_by_itself",),
        *_unwatched(
            _both(
                "-A ufw-before-input -p udp -d 224.0.0.251 --dport 5353 -j ACCEPT",
                "-A ufw6-before-input -p udp -d ff02::fb --dport 5353 -j ACCEPT",
            ),
            _both(
                "-D ufw-before-input -p udp -d 224.0.0.251 --dport 5353 -j ACCEPT",
                "-D ufw6-before-input -p udp -d ff02::fb --dport 5353 -j ACCEPT",
            ),
        ),
    ),
    Sabotage(
        "a rule stands before ufw's",
        ("firewall::no_rule_accepts_packets_before_ufw",),
        *_unwatched(
            _both("-I INPUT -p tcp --dport 2222 -j ACCEPT"),
            _both("-D INPUT -p tcp --dport 2222 -j ACCEPT"),
        ),
    ),
    Sabotage(
        "something listens to everybody",
        ("firewall::only_declared_ports_listen_off_this_host",),
        "systemd-run --quiet --unit=stray --socket-property=ListenStream=2222 cat",
        "systemctl stop stray.socket",
    ),
    Sabotage(
        "containers are let through",
        ("firewall::containers_are_reached_only_as_declared",),
        *_unwatched(
            f"{_both(f'-I {DOCKER_USER} -j RETURN')} && {_both(f'-t mangle -I {GUARD} -j RETURN')}",
            f"{_both(f'-D {DOCKER_USER} -j RETURN')} && {_both(f'-t mangle -D {GUARD} -j RETURN')}",
        ),
    ),
    Sabotage(
        "another rule is asked before the guard",
        ("firewall::the_guard_of_containers_comes_first",),
        *_unwatched(_both("-I FORWARD -j ACCEPT"), _both("-D FORWARD -j ACCEPT")),
    ),
    Sabotage(
        "ufw is off after a boot",
        ("firewall::a_boot_brings_the_same_rules_back",),
        *_unwatched(*edited("/etc/ufw/ufw.conf", "s/^ENABLED=yes/ENABLED=no/")),
    ),
    Sabotage(
        "nftables may flush the rules",
        ("firewall::nothing_else_loads_or_flushes_rules",),
        "systemctl unmask nftables.service",
        "systemctl mask nftables.service",
    ),
    Sabotage(
        "a change of the firewall was never proved",
        ("firewall::no_change_waits_for_its_proof",),
        f"mkdir -p {ROLLBACK_STATE} && touch {ROLLBACK_STATE}/armed",
        f"rm {ROLLBACK_STATE}/armed",
    ),
    Sabotage(
        "the firewall is not the one that a login proved",
        ("firewall::a_login_proved_the_rules_in_force",),
        *_unwatched(
            _both("-I ufw-before-input -j ACCEPT", "-I ufw6-before-input -j ACCEPT"),
            _both("-D ufw-before-input -j ACCEPT", "-D ufw6-before-input -j ACCEPT"),
        ),
    ),
    Sabotage(
        "the firewall is not watched",
        ("firewall::it_is_watched_now_and_at_boot",),
        f"systemctl stop {firewall.TIMER}",
        f"systemctl start {firewall.TIMER}",
    ),
    Sabotage(
        "no boot undoes a change of the firewall",
        ("firewall::a_boot_undoes_what_was_not_proved",),
        "systemctl disable holdfast-firewall-rollback.service",
        "systemctl enable holdfast-firewall-rollback.service",
    ),
)

_RELOAD_EGRESS = f"systemctl reload {egress.SERVICE}"
_NO_WATCH = f"systemctl stop {egress.TIMER}"
_WATCH = f"systemctl start {egress.TIMER}"

EGRESS = (
    Sabotage(
        "a hand lets the floor call everybody",
        ("egress::the_kernel_has_the_declared_rules_untouched",),
        f"{_NO_WATCH} && nft insert rule inet holdfast_egress from-floor accept",
        f"{_RELOAD_EGRESS} && {_WATCH}",
    ),
    Sabotage(
        "the file lets the floor call everybody",
        (
            "egress::the_kernel_has_the_declared_rules_untouched",
            "egress::no_t1_user_can_send_anything_out",
            "egress::each_attempt_is_reported_once_by_name",
        ),
        *edited(egress.RULES, "s/goto deny-floor$/accept/", _RELOAD_EGRESS),
    ),
    Sabotage(
        "the file lets a T1 network's containers call everybody",
        (
            "egress::the_kernel_has_the_declared_rules_untouched",
            "egress::nothing_behind_a_t1_networks_bridge_can_send_anything_out",
            "egress::attempts_behind_a_bridge_are_reported_by_network",
        ),
        *edited(egress.RULES, "s/goto deny-sealed-net$/accept/", _RELOAD_EGRESS),
    ),
    Sabotage(
        "nobody writes down who called whom",
        (
            "egress::the_journal_has_the_calls_of_each_user",
            "egress::the_journal_has_the_calls_of_containers",
        ),
        *edited(egress.RULES, "/log prefix/d", _RELOAD_EGRESS),
    ),
    Sabotage(
        "nobody watches the rules",
        ("egress::the_rules_come_before_the_network_at_boot_and_are_watched",),
        _NO_WATCH,
        _WATCH,
    ),
    Sabotage(
        "a program runs as the floor's user beside its unit",
        ("egress::no_program_of_a_t1_user_sees_the_sockets_of_others",),
        "systemd-run --quiet --collect --unit=stray --uid=holdfast-floor sleep infinity",
        "systemctl stop stray.service",
    ),
    Sabotage(
        "everybody may have Tailscale call",
        ("egress::only_root_can_make_tailscale_call",),
        "chmod 755 /run/tailscale",
        "chmod 700 /run/tailscale",
    ),
    Sabotage(
        "the kernel asks a resolver for whoever wants a key",
        ("egress::no_key_makes_the_kernel_ask_a_resolver",),
        # What was negated is so for half a minute.
        *edited(egress.REQUEST_KEYS, "/^create/d", "sleep 31"),
    ),
)

EGRESS_PRIVATE = (
    Sabotage(
        "the addresses of clouds are looked up no more",
        ("egress::clouds_have_the_addresses_of_their_names",),
        f"systemctl stop {egress.RESOLVE_TIMER}",
        f"systemctl start {egress.RESOLVE_TIMER}",
    ),
    Sabotage(
        "a unit of its owner's may call everybody",
        ("egress::systemd_restricts_units_that_are_only_named",),
        *edited(
            egress.drop_in_path("photos.service"), "/^IPAddressDeny/d", "systemctl daemon-reload"
        ),
    ),
)
"""Of what the native rack declares for private work, and no virtual machine."""

DOCKER = (
    Sabotage(
        "our keys in daemon.json are changed",
        ("docker::our_settings_are_in_its_file", "docker::it_runs_with_them"),
        *edited(DAEMON_JSON, 's/"live-restore": true/"live-restore": false/'),
    ),
    Sabotage(
        "the engine publishes to everybody and logs without an end",
        (
            "docker::a_port_without_an_address_is_published_to_this_host_only",
            "docker::the_logs_of_every_container_are_bounded",
        ),
        f"rm -f /root/running && {_ALL_STOPPED}"
        f" && cp -a {DAEMON_JSON} /root/daemon.json && {_LOOSE_DOCKER} && systemctl restart docker"
        f" && docker run --detach --name stray {IMAGE}",
        f"docker rm --force stray && {_ALL_STOPPED}"
        f" && cp -a /root/daemon.json {DAEMON_JSON} && systemctl restart docker"
        " && xargs --no-run-if-empty docker start < /root/running",
    ),
    Sabotage(
        "the engine writes its rules where ours are not asked",
        ("docker::its_firewall_backend_has_our_chain",),
        *lying(
            "docker",
            '/usr/bin/docker "$@" | sed \'1s/^{/{"FirewallBackend": {"Driver": "nftables"},/\'',
        ),
    ),
    Sabotage(
        "a link of the host's would lose its route, and every new one takes any",
        (
            "docker::the_hosts_links_keep_the_routes_that_routers_advertise",
            "docker::no_link_of_containers_takes_a_route",
        ),
        "sysctl --values net.ipv6.conf.eth1.accept_ra > /root/accept_ra"
        " && sysctl --write net.ipv6.conf.eth1.accept_ra=1"
        " && sysctl --write net.ipv6.conf.default.accept_ra=2",
        "sysctl --write net.ipv6.conf.default.accept_ra=1"
        " && sysctl --write net.ipv6.conf.eth1.accept_ra=$(cat /root/accept_ra)",
    ),
    Sabotage(
        "a network has a bridge that no rule knows",
        ("docker::its_networks_are_the_declared_ones",),
        _recreated(f"docker network create {_SEALED.name}"),
        _recreated(docker_networks.creation(_SEALED)),
    ),
    Sabotage(
        "a service's container is on another network than is declared",
        ("docker::the_container_of_a_declared_service_is_on_its_network_alone",),
        # The service's own where it runs; else one that publishes its port.
        f"id=$(docker ps --quiet --filter publish=8089);"
        f" docker network connect bridge ${{id:-$(docker run --detach --name stray"
        f" --network {_SEALED.name} --publish 127.0.0.1:8089:80 {IMAGE})}}",
        "if docker inspect stray >/dev/null; then docker rm --force stray; else"
        " docker network disconnect bridge $(docker ps --quiet --filter publish=8089); fi",
    ),
    Sabotage(
        "a container on a T1 network is on another too, and older than what it should ask",
        (
            "docker::containers_on_a_t1_network_are_on_no_other",
            "docker::containers_on_a_t1_network_ask_the_declared_resolvers",
        ),
        f"docker run --detach --name stray --network {_SEALED.name} {IMAGE}"
        f" && docker network connect bridge stray && cp -a {DAEMON_JSON} /root/daemon.json"
        f" && sleep 1.1 && touch {DAEMON_JSON}",
        f"docker rm --force stray && cp -a /root/daemon.json {DAEMON_JSON}",
    ),
    Sabotage(
        "somebody is root by the engine's group",
        ("docker::its_group_has_no_members",),
        "gpasswd --add operator docker",
        "gpasswd --delete operator docker",
    ),
    Sabotage(
        "the engine starts without its guard",
        ("docker::it_starts_behind_the_firewall",),
        *configured("docker.service", ["ExecStartPre="]),
    ),
    Sabotage(
        "the engine is stopped",
        ("docker::it_answers",),
        "systemctl stop docker.socket docker.service",
        "systemctl start docker.socket docker.service",
    ),
)

KEY_ENDS = lying(
    "tailscale",
    '/usr/bin/tailscale "$@" | sed \'s/"Online": true/&, "KeyExpiry": "2030-01-02T03:04:05Z"/\'',
)
"""The node key of a rack ends one day, as far as a caller of tailscale sees."""

TAILNET = (
    Sabotage(
        "the daemon is offline, has another name, and lets Tailscale's own SSH in",
        (
            "tailnet::it_is_online_and_its_membership_holds",
            "tailnet::it_has_the_declared_name_tags_and_control_server",
            "tailnet::ssh_on_the_tailnet_is_the_hardened_sshd",
        ),
        # Said, not done: the tests come by the tailnet.
        *lying(
            "tailscale",
            '/usr/bin/tailscale "$@" | sed -e \'s/"Online": true/"Online": false/\''
            ' -e \'s/"Hostname": "rack"/"Hostname": "stray"/\''
            ' -e \'s/"RunSSH": false/"RunSSH": true/\'',
        ),
    ),
    Sabotage(
        "its node key ends",
        ("tailnet::its_node_key_expires_only_if_the_inventory_accepts_it",),
        *KEY_ENDS,
    ),
    Sabotage(
        "its membership is not watched",
        ("tailnet::ssh_returns_to_the_lan_as_declared_when_membership_is_lost",),
        f"systemctl stop {tailnet_membership.TIMER}",
        f"systemctl start {tailnet_membership.TIMER}",
    ),
    Sabotage(
        "a hand opens everything to the tailnet",
        ("tailnet::the_kernel_has_the_tailnets_rules_untouched",),
        f"systemctl stop {tailnet_rules.TIMER}"
        f" && nft insert rule inet {tailnet_rules.TABLE} input accept",
        f"systemctl reload {tailnet_rules.SERVICE} && systemctl start {tailnet_rules.TIMER}",
    ),
    Sabotage(
        "nobody watches what the tailnet may reach",
        ("tailnet::those_rules_come_before_tailscaled_at_boot_and_are_watched",),
        f"systemctl stop {tailnet_rules.TIMER}",
        f"systemctl start {tailnet_rules.TIMER}",
    ),
    Sabotage(
        "its interface has lost an address",
        ("tailnet::it_has_an_address_of_each_family_on_its_interface",),
        "ip address del $(tailscale ip -6)/128 dev tailscale0",
        "ip address add $(tailscale ip -6)/128 dev tailscale0",
    ),
    Sabotage(
        "the daemon has another port",
        ("tailnet::the_running_daemon_sends_no_logs_and_has_the_declared_port",),
        *edited(
            "/etc/holdfast/tailscaled.env",
            "s/^PORT=.*/PORT=41999/",
            "systemctl restart tailscaled"
            " && until tailscale status --peers=false; do sleep 1; done",
        ),
    ),
    Sabotage(
        "the daemon does not start with the host",
        ("tailnet::the_daemon_starts_with_the_host",),
        "systemctl disable tailscaled",
        "systemctl enable tailscaled",
    ),
    Sabotage(
        "a join key was left behind",
        ("tailnet::the_join_key_is_nowhere",),
        "printf '%s%s' hskey-auth- ABCDEFGHIJKLMNOPQRSTUVWX > /root/stray",
        "rm /root/stray",
    ),
)

MOUNTS = (
    Sabotage(
        "the NAS is mounted so that data may be lost",
        ("storage::first_use_mounts_with_the_options_that_keep_data",),
        *edited(_MOUNT, "s/\\bhard\\b/soft/", _REMOUNT),
    ),
    Sabotage(
        "the NAS takes no writes",
        ("storage::a_write_reaches_the_nas_and_comes_back",),
        *edited(_MOUNT, "s/\\brw\\b/ro/", _REMOUNT),
    ),
    Sabotage(
        "the folder beneath the mount can be written",
        ("storage::nothing_can_be_written_beneath_a_mount",),
        _BARE.format("-i", "/run/bare"),
        _BARE.format("+i", "/run/bare"),
    ),
    Sabotage(
        "a boot waits for the NAS",
        ("storage::a_boot_does_not_wait_for_the_nas",),
        *edited("/etc/fstab", "$a 10.77.0.30:/srv/holdfast /mnt/stray nfs4 defaults 0 0"),
    ),
    Sabotage(
        "rpcbind listens",
        ("storage::no_rpc_service_listens",),
        "systemctl unmask rpcbind.socket rpcbind.service && systemctl start rpcbind.socket",
        "systemctl stop rpcbind.socket rpcbind.service"
        " && systemctl mask rpcbind.socket rpcbind.service",
    ),
)

_HOME = "holdfast-clouds-home"
_HOME_TOLD = "/etc/holdfast/clouds/home.json"
_LEDGER = "holdfast-ledger.service"
_OPEN = ["ProtectSystem=no", "CapabilityBoundingSet=~", "SystemCallFilter=", "PrivateUsers=no"]

CLOUDS = (
    Sabotage(
        "nobody asks clouds",
        ("services::each_runs_as_its_user",),
        # With its socket: its router asks how it is, and would start it again.
        f"systemctl stop {_HOME}.socket {_HOME}.service",
        f"systemctl start {_HOME}.socket {_HOME}.service",
    ),
    Sabotage(
        "a budget is another",
        ("clouds::each_has_the_declared_configuration",),
        *edited(_HOME_TOLD, 's/"budget_usd": "/&9/'),
    ),
    Sabotage(
        "anyone may ask its clouds",
        ("clouds::only_its_router_may_call_it",),
        f"chmod 666 {RUN}/{_HOME}.sock",
        f"chmod 600 {RUN}/{_HOME}.sock",
    ),
    Sabotage(
        "a cloud's key stands under the name of another",
        ("clouds::its_keys_are_the_declared_clouds",),
        *edited(f"/etc/holdfast/credentials/{_HOME}-keys", 's/^{"/&other-/'),
    ),
    Sabotage(
        "anyone may read the clouds' keys",
        ("services::only_root_can_read_secrets_and_they_are_nowhere_else",),
        f"chmod 644 /etc/holdfast/credentials/{_HOME}-keys",
        f"chmod 600 /etc/holdfast/credentials/{_HOME}-keys",
    ),
    Sabotage(
        "it minds the host's variables",
        ("clouds::no_variable_of_the_host_reaches_it",),
        *edited(
            f"/etc/systemd/system/{_HOME}.service",
            "s/--ignore-environment//",
            f"systemctl daemon-reload && systemctl restart {_HOME}.service",
        ),
    ),
    Sabotage(
        "its environment runs what nobody pinned",
        ("clouds::its_environment_is_the_pinned_one_and_only_root_can_write_it",),
        "for folder in /opt/holdfast/litellm/*/lib/python3*/site-packages;"
        " do echo 'import os' > $folder/stray.pth; done",
        "rm /opt/holdfast/litellm/*/lib/python3*/site-packages/stray.pth",
    ),
    Sabotage(
        "the ledger has a network",
        ("services::isolated_units_have_no_network",),
        f"nsenter --target $(systemctl show -P MainPID {_LEDGER}) --net"
        " ip link add stray type veth",
        f"nsenter --target $(systemctl show -P MainPID {_LEDGER}) --net ip link delete stray",
    ),
    Sabotage(
        "anyone gets into the ledger",
        ("ledger::each_writer_can_open_only_its_own_database",),
        *edited(
            "/etc/holdfast/ledger/pg_hba.conf",
            "s/^local.*/local all all trust/",
            f"systemctl restart {_LEDGER}",
        ),
    ),
    Sabotage(
        "the ledger writes to memory alone",
        ("ledger::what_it_confirmed_is_on_disk",),
        *edited(
            "/etc/holdfast/ledger/postgresql.conf",
            "$ a fsync = off",
            f"systemctl restart {_LEDGER}",
        ),
    ),
    Sabotage(
        "anyone may look among its dumps",
        ("ledger::its_files_are_its_own",),
        f"chmod 755 {LEDGER_DUMPS}",
        f"chmod 700 {LEDGER_DUMPS}",
    ),
    Sabotage(
        "it cannot be written out",
        ("ledger::it_can_be_dumped_for_the_backup",),
        *edited(
            f"/etc/systemd/system/{ledger.DUMP}",
            "s/pg_dump/pg_dumb/",
            f"systemctl daemon-reload; systemctl reset-failed {ledger.DUMP}; true",
        ),
    ),
)
"""For a rack of `make drill-routing` with the routers of `personal.py`."""

MODELS = (
    Sabotage(
        "a byte of a model is another",
        ("storage::models_have_the_declared_checksum_and_anyone_may_read_them",),
        f"cp -a {_MODEL} /root/model && printf x | dd of={_MODEL} conv=notrunc status=none",
        f"cp -a /root/model {_MODEL} && rm /root/model",
    ),
    Sabotage(
        "a model was written after it was proved",
        ("storage::every_model_has_a_proof_that_fits_it",),
        f"cp -a {_MODEL} /root/model && touch {_MODEL}",
        f"cp -a /root/model {_MODEL} && rm /root/model",
    ),
    Sabotage(
        "a model lies half copied",
        ("storage::nothing_half_copied_is_left",),
        f"touch {_MODEL}.part",
        f"rm {_MODEL}.part",
    ),
    Sabotage(
        "nobody checks the models",
        (
            "storage::the_model_check_is_armed_and_last_found_nothing_wrong",
            "services::each_timer_waits_for_its_next_run",
        ),
        "systemctl stop holdfast-models-verify.timer",
        "systemctl start holdfast-models-verify.timer",
    ),
    Sabotage(
        "the models' check is let out of its sandbox",
        ("storage::the_model_check_runs_in_its_sandbox",),
        *configured(
            "holdfast-models-verify.service",
            [
                *("DynamicUser=no", "ProtectSystem=no", "CapabilityBoundingSet=~"),
                *("PrivateNetwork=no", "SystemCallFilter="),
            ],
        ),
    ),
)

CHECKPOINTS = (
    Sabotage(
        "a checkpoint holds a file that nobody listed",
        ("storage::checkpoints_match_their_checksum_list_and_anyone_may_read_them",),
        f"for folder in {_CHECKPOINTS}; do touch $folder/stray.safetensors; done",
        f"rm {_CHECKPOINTS}/stray.safetensors",
    ),
    Sabotage(
        "a checkpoint was written after it was proved",
        ("storage::every_checkpoint_has_a_proof_that_fits_it",),
        f"for folder in {_CHECKPOINTS}; do cp -a $folder/config.json /root/${{folder##*/}}"
        " && touch $folder/config.json; done",
        f"for folder in {_CHECKPOINTS}; do cp -a /root/${{folder##*/}} $folder/config.json"
        " && rm /root/${folder##*/}; done",
    ),
)
"""For a rack that keeps some."""

FLOOR = (
    Sabotage(
        "the floor's key is another",
        ("floor::it_completes_with_the_key",),
        *edited(floor.KEY_FILE, "s/.*/stray/"),
    ),
    Sabotage(
        "the floor's key can be read",
        ("services::only_root_can_read_secrets_and_they_are_nowhere_else",),
        f"chmod 644 {floor.KEY_FILE}",
        f"chmod 600 {floor.KEY_FILE}",
    ),
    Sabotage(
        "somebody else listens on the floor's port",
        ("services::each_listens_only_where_it_is_declared",),
        "systemd-run --quiet --unit=stray --socket-property=ListenStream=8080"
        " --socket-property=BindToDevice=eth1 cat",
        "systemctl stop stray.socket",
    ),
    Sabotage(
        "the floor asks for no key",
        ("floor::it_refuses_a_wrong_key",),
        *edited(
            f"/etc/systemd/system/{floor.UNIT}",
            "s/--api-key-file [^ ]*//",
            f"systemctl daemon-reload && systemctl restart {floor.UNIT}",
        ),
    ),
    Sabotage(
        "the floor's unit is let loose",
        (
            "services::isolated_units_have_no_network",
            "floor::its_weights_stay_in_memory",
            "floor::it_restarts_when_it_is_killed",
        ),
        *configured(
            floor.UNIT,
            ["PrivateNetwork=no", "LimitMEMLOCK=0", "Restart=no"],
            f"systemctl restart {floor.UNIT}",
        ),
    ),
    Sabotage(
        "the floor may take another amount of memory",
        ("floor::its_limits_are_in_force",),
        *configured(floor.UNIT, ["MemoryMax=700M"], f"systemctl restart {floor.UNIT}"),
    ),
    Sabotage(
        "the floor is stopped",
        ("floor::its_health_is_public",),
        f"systemctl stop {floor.UNIT}",
        f"systemctl start {floor.UNIT}",
    ),
)

BACKUP = (
    Sabotage(
        "nobody asks how old the backup is",
        ("backup::every_timer_is_armed_now_and_at_boot",),
        "systemctl stop holdfast-backup-check@nas.timer",
        "systemctl start holdfast-backup-check@nas.timer",
    ),
    Sabotage(
        "the last restore was not what was backed up",
        (
            "backup::the_newest_snapshot_is_fresh_and_whole_in_every_place",
            "backup::every_place_was_restored_and_compared",
        ),
        *edited(_NAS, 's/"ok": true/"ok": false/', "systemctl reset-failed"),
    ),
    Sabotage(
        "the snapshot lacks what is declared",
        ("backup::the_snapshot_holds_the_declared_paths",),
        *edited(_NAS, 's#"/srv/data"#"/srv/stray"#'),
    ),
    Sabotage(
        "a repository's password can be read",
        ("services::only_root_can_read_secrets_and_they_are_nowhere_else",),
        f"chmod 644 {CREDENTIALS}/backup-nas-password",
        f"chmod 600 {CREDENTIALS}/backup-nas-password",
    ),
    Sabotage(
        "a restore check left its copy",
        ("backup::a_restore_check_leaves_nothing_on_disk",),
        f"mkdir {backup.STATE}/staging-nas",
        f"rmdir {backup.STATE}/staging-nas",
    ),
    Sabotage(
        "a restore does not ask what lies where it goes",
        ("backup::a_restore_never_overwrites_live_data",),
        *edited(backup.PROGRAM, "s/if target == Path(source) or/if False and/"),
    ),
)

_NO_TIMER = f"systemctl stop {limits.TIMER}"
_LOOK = f"systemctl start {limits.SERVICE} {limits.TIMER}"
_RACK = guest.DESCRIPTION
_GONE = rewritten(_RACK, "value['cards'][2]['state'] = 'gone'")
_ONE_GONE = f"cp -a {_RACK} /root/rack.json && {_GONE}"
_ALL_BACK = f"cp -a /root/rack.json {_RACK}.new && mv {_RACK}.new {_RACK}"

CARDS = (
    Sabotage(
        "a card is not on the bus",
        ("gpu::every_declared_card_is_there_with_its_lanes",),
        "mv /run/lab-rack-pci/0000:44:00.0 /run/",
        "mv /run/0000:44:00.0 /run/lab-rack-pci/",
    ),
    Sabotage(
        "the driver does not show a card, nor can it be limited",
        (
            "gpu::the_driver_shows_every_card_of_this_host",
            "gpu::the_last_check_of_the_limits_succeeded",
        ),
        f"{_NO_TIMER} && {_ONE_GONE} && systemctl start {limits.SERVICE}; true",
        f"{_ALL_BACK} && {_LOOK}",
    ),
    Sabotage(
        "a card has fallen off the bus",
        ("gpu::no_card_has_fallen_off_the_bus_since_boot",),
        "echo 'kernel: NVRM: Xid (PCI:0000:44:00): 79, pid=1' > /dev/kmsg",
        "journalctl --rotate; while journalctl --quiet --dmesg --grep='Xid .*: 79'; do"
        " journalctl --vacuum-time=1s; sleep 1; done",
    ),
    Sabotage(
        "the driver goes with its last client",
        ("gpu::the_driver_stays_in_place_without_clients",),
        f"{_NO_TIMER} && nvidia-smi -pm 0",
        f"nvidia-smi -pm 1 && {_LOOK}",
    ),
    Sabotage(
        "the newest kernel has no module",
        ("gpu::the_kernel_that_boots_next_drives_the_cards",),
        "mkdir -p /root/dkms && mv /lib/modules/*/updates/dkms/nvidia*.ko* /root/dkms/",
        "mv /root/dkms/* /lib/modules/*/updates/dkms/ && rmdir /root/dkms"
        f" && systemctl start {driver.KERNELS_SERVICE}",
    ),
    Sabotage(
        "a card is at another limit",
        ("gpu::every_limit_reads_back_as_declared",),
        f"{_NO_TIMER} && nvidia-smi -i 0 -pl 300",
        _LOOK,
    ),
    Sabotage(
        "nobody watches the limits",
        ("gpu::the_limits_are_watched_now_and_at_boot",),
        _NO_TIMER,
        _LOOK,
    ),
    Sabotage(
        "containers are told of another card",
        ("gpu::containers_get_the_present_cards_and_libraries",),
        *edited(containers.SPECIFICATION, "s/GPU-./GPU-0/"),
    ),
    Sabotage(
        "the specification is not made at boot",
        ("gpu::the_specification_is_made_at_every_boot_by_us_alone",),
        f"systemctl disable {containers.SERVICE}",
        f"systemctl enable {containers.SERVICE}",
    ),
    Sabotage(
        "a container cannot reach its card",
        ("gpu::running_containers_reach_their_cards",),
        # The stand-ins have no device file, and only root can make one.
        "docker run --detach --name stray --user 65534 --device nvidia.com/gpu=0 " + IMAGE,
        "docker rm --force stray",
    ),
)
"""For a rack of `make drill-gpu`."""

_CHAT = "holdfast-vllm-chat"
_PATHS = "/etc/holdfast/vllm/chat-loopback.cfg"
_DOOR = f"systemctl restart {_CHAT}-loopback.service"
_IN_CHAT = f"nsenter --target $(systemctl show -P MainPID {_CHAT}.service) --net"


def _at_the_door(rule: str) -> tuple[str, str]:
    return edited(_PATHS, f"s/^    http-request deny/    http-request {rule}\\n&/", _DOOR)


ENGINES = (
    Sabotage(
        "an engine refuses everybody",
        ("engines::each_answers_with_its_key",),
        *_at_the_door("deny deny_status 403 if METH_POST"),
    ),
    Sabotage(
        "an engine asks for no key",
        ("engines::each_refuses_a_wrong_key",),
        *_at_the_door("return status 200 if METH_POST !{ req.hdr(authorization) -m found }"),
    ),
    Sabotage(
        "every path leads to the engine",
        (
            "engines::no_other_path_reaches_an_engine",
            "engines::nothing_else_can_be_read",
            "engines::a_path_accepts_only_its_own_method",
        ),
        *edited(_PATHS, "/http-request deny/d", _DOOR),
    ),
    Sabotage(
        "nobody can read its metrics",
        ("engines::its_health_and_its_metrics_are_there",),
        *edited(_PATHS, "s, /metrics,,", _DOOR),
    ),
    Sabotage(
        "something else listens on its port",
        ("services::each_listens_only_where_it_is_declared",),
        "systemd-run --quiet --unit=stray python3 -m http.server --bind 127.0.0.2 8100"
        " && until ss -Hltn 'sport = :8100' | grep -q 127.0.0.2; do sleep 0.2; done",
        "systemctl stop stray",
    ),
    Sabotage(
        "an engine has a way out",
        ("services::isolated_units_have_no_network",),
        f"{_IN_CHAT} ip link add stray type veth",
        f"{_IN_CHAT} ip link delete stray",
    ),
    Sabotage(
        "anyone may read its key",
        ("services::only_root_can_read_secrets_and_they_are_nowhere_else",),
        f"chmod 644 /etc/holdfast/credentials/{_CHAT}-key",
        f"chmod 600 /etc/holdfast/credentials/{_CHAT}-key",
    ),
    Sabotage(
        "its environment is not root's alone",
        ("engines::each_uses_only_the_pinned_environment",),
        "echo 'import os' > /opt/holdfast/vllm/stray.pth && chmod 666 /opt/holdfast/vllm/stray.pth",
        "rm /opt/holdfast/vllm/stray.pth",
    ),
)
"""For a rack of `make drill-serving`."""

_WORK = "holdfast-router-work"
_ROUTES = "/etc/holdfast/router/work-loopback.cfg"
_ROUTED_ANEW = f"systemctl restart {_WORK}-loopback.service && sleep 1"
_WORK_KEYS = f"/etc/holdfast/credentials/{_WORK}-keys"
_QUEUE = "holdfast-queue-work"
_IN_QUEUE = f"nsenter --target $(systemctl show -P MainPID {_QUEUE}.service) --net"

ROUTERS = (
    Sabotage(
        "a router refuses everybody",
        ("router::each_answers_with_its_key_and_names_the_engine",),
        *edited(
            _ROUTES, "s/^    http-request wait-for-body/    http-request deny\\n&/", _ROUTED_ANEW
        ),
    ),
    Sabotage(
        "a router asks for no key",
        ("router::each_refuses_a_wrong_key",),
        *edited(_ROUTES, "/http-request return status 401/d", _ROUTED_ANEW),
    ),
    Sabotage(
        "every path leads to an engine",
        ("router::every_other_path_is_refused",),
        *edited(_ROUTES, "/http-request deny deny_status 404/d", _ROUTED_ANEW),
    ),
    Sabotage(
        "a router does not say how it is",
        ("router::its_health_needs_no_key",),
        *edited(_ROUTES, "/ if METH_GET health/d", _ROUTED_ANEW),
    ),
    Sabotage(
        "something else listens on its port",
        ("services::each_listens_only_where_it_is_declared",),
        "systemd-run --quiet --unit=stray python3 -m http.server --bind 127.0.0.2 8200"
        " && until ss -Hltn 'sport = :8200' | grep -q 127.0.0.2; do sleep 0.2; done",
        "systemctl stop stray",
    ),
    Sabotage(
        "it is given an upstream elsewhere",
        ("router::each_upstream_is_of_this_host",),
        *edited(
            _ROUTES, "s/server engine 127.0.0.1:8100/server engine 10.0.2.2:443/", _ROUTED_ANEW
        ),
    ),
    Sabotage(
        "a cloud's key is planted",
        ("router::it_holds_no_key_but_its_callers_and_its_engines",),
        *edited(_WORK_KEYS, "$ a cloud Bearer sk-abcdefghijklmnopqrstuvwxyz"),
    ),
    Sabotage(
        "anyone may read its keys",
        ("services::only_root_can_read_secrets_and_they_are_nowhere_else",),
        f"chmod 644 {_WORK_KEYS}",
        f"chmod 600 {_WORK_KEYS}",
    ),
    Sabotage(
        "a router has a way out",
        ("router::the_kernel_allows_it_loopback_only",),
        *configured(
            f"{_WORK}-loopback.service", ["IPAddressDeny=", "IPAddressAllow="], _ROUTED_ANEW
        ),
    ),
    Sabotage(
        "the queue has a way out",
        ("services::isolated_units_have_no_network",),
        f"{_IN_QUEUE} ip link add stray type veth",
        f"{_IN_QUEUE} ip link delete stray",
    ),
    Sabotage(
        "anyone may read what waits",
        ("router::only_its_user_can_read_the_queue",),
        "chmod 644 /var/lib/holdfast/queue/work/queue.db",
        "chmod 600 /var/lib/holdfast/queue/work/queue.db",
    ),
    Sabotage(
        "nobody watches how long they wait",
        ("router::the_age_of_the_queue_is_watched",),
        f"systemctl stop {_QUEUE}-age.timer",
        f"systemctl start {_QUEUE}-age.timer",
    ),
)
"""For a rack of `python -m tests.drill --routing`."""

_CREATIVE = modes.target("creative")
_AGAIN = f"{modes.PROGRAM} creative"

MODES = (
    Sabotage(
        "no mode is in force",
        ("gpu_modes::one_mode_of_each_set_is_active",),
        f"systemctl stop {_CREATIVE}",
        _AGAIN,
    ),
    Sabotage(
        "a service of the mode does not run",
        ("gpu_modes::its_services_run_and_no_other",),
        "systemctl stop painter",
        _AGAIN,
    ),
    Sabotage(
        "a boot begins with another mode",
        ("gpu_modes::a_boot_begins_with_the_default",),
        f"systemctl enable {_CREATIVE}",
        f"systemctl disable {_CREATIVE}",
    ),
    Sabotage(
        "who logs in is told nothing",
        ("gpu_modes::a_login_shows_the_mode",),
        f"chmod 644 {GREETING}",
        f"chmod 755 {GREETING}",
    ),
    Sabotage(
        "the host knows no modes",
        ("gpu_modes::the_command_shows_every_mode",),
        f"mv {modes.CONFIG} /root/modes.json",
        f"mv /root/modes.json {modes.CONFIG}",
    ),
)
"""For a rack of `make drill-serving` in its mode creative."""

SERVICES = (
    Sabotage(
        "the floor runs as root",
        ("services::each_runs_as_its_user",),
        *configured(floor.UNIT, ["User=root"]),
    ),
    Sabotage(
        "a key is in an environment",
        ("services::only_root_can_read_secrets_and_they_are_nowhere_else",),
        f"systemd-run --quiet --unit=stray --setenv=KEY=$(cat {floor.KEY_FILE}) sleep infinity",
        "systemctl stop stray",
    ),
    Sabotage(
        "the floor stays away when it ends",
        ("services::each_restarts_when_it_ends",),
        *configured(floor.UNIT, ["Restart=no"]),
    ),
    Sabotage(
        "an alert leaves nothing behind",
        ("services::a_unit_that_fails_leaves_an_alert",),
        *configured("holdfast-notify@.service", ["ExecStart=", "ExecStart=/bin/true"]),
    ),
)
"""For a rack with a floor and other services."""

SANDBOXES = tuple(
    Sabotage(
        f"the sandbox of {unit} is open",
        ("sandbox::systemd_finds_every_unit_as_closed_as_declared",),
        *configured(unit, ["User=root", "PrivateNetwork=no", "IPAddressDeny=", *_OPEN]),
    )
    for unit in (f"{_HOME}.service", _LEDGER, f"{_CHAT}.service", f"{_QUEUE}.service")
)
"""For a rack with engines, routers and clouds."""

SITE = (
    *(*BASE, *HARDENING, *SANDBOX, *SSH, *FIREWALL, *EGRESS, *DOCKER),
    *(*TAILNET, *MOUNTS, *MODELS, *FLOOR, *SERVICES, *BACKUP),
)
"""For a rack of `inventories/drill.py`."""

_NOT_NATIVE = {test for test, _ in ELSEWHERE["native"]}

NATIVE = tuple(
    sabotage
    for sabotage in (
        *(*BASE, *HARDENING, *SANDBOX, *SSH, *FIREWALL, *EGRESS, *DOCKER, *TAILNET),
        *(
            *EGRESS_PRIVATE,
            *MODELS,
            *CHECKPOINTS,
            *FLOOR,
            *SERVICES,
            *SANDBOXES,
            *ENGINES,
            *ROUTERS,
            *CLOUDS,
            *CARDS,
            *BACKUP,
        ),
    )
    if not _NOT_NATIVE & set(sabotage.red)
)
"""For the native rack; those of modes are done in the mode that they are about."""
