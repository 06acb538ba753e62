"""Storage: writes reach the NAS, no files hide beneath a mount, models match their checksums."""

from __future__ import annotations

import re
import shlex

import pytest
from testinfra.host import Host

from facts.storage import LISTING, PROOFS, beneath
from holdfast.registry import declared_services
from holdfast.settings import Checkpoint, HostSettings, ModelFile, NfsMount, Storage
from holdfast.storage import (
    checkpoint_folder,
    checkpoint_path,
    model_path,
    mount_of,
    unit_name,
    what,
)


@pytest.fixture(scope="module")
def mounts(settings: HostSettings) -> list[NfsMount]:
    if not settings.storage.mounts:
        pytest.skip("this host has no mounts")
    return settings.storage.mounts


@pytest.fixture(scope="module")
def storage(settings: HostSettings) -> Storage:
    if not settings.storage.models and not settings.storage.checkpoints:
        pytest.skip("this host stores no models")
    return settings.storage


@pytest.fixture(scope="module")
def models(storage: Storage) -> list[ModelFile]:
    if not storage.models:
        pytest.skip("this host stores no model of one file")
    return storage.models


@pytest.fixture(scope="module")
def checkpoints(storage: Storage) -> list[Checkpoint]:
    if not storage.checkpoints:
        pytest.skip("this host stores no checkpoints")
    return storage.checkpoints


def _touch(mount: NfsMount) -> str:
    return f"timeout -s KILL {mount.timeout_seconds + 10} stat -t {mount.path}/. > /dev/null"


def test_first_use_mounts_with_the_options_that_keep_data(
    host: Host, mounts: list[NfsMount]
) -> None:
    for mount in mounts:
        automount, unit = (unit_name(mount.path, kind) for kind in ("automount", "mount"))
        seen = host.check_output(
            f"{_touch(mount)}; systemctl is-enabled {shlex.quote(automount)};"
            f" systemctl is-active {shlex.quote(automount)} {shlex.quote(unit)};"
            f" findmnt --noheadings --types nfs4 --output SOURCE,OPTIONS {mount.path}"
        ).splitlines()
        assert seen[:3] == ["enabled", "active", "active"]
        source, options = seen[3].split()
        assert source == what(mount)
        wanted = {"vers=4.2", "hard", "proto=tcp", "nosuid", "nodev", "noexec"}
        wanted.add("ro" if mount.read_only else "rw")
        assert {re.sub(r"^proto=tcp6$", "proto=tcp", option) for option in options.split(",")} >= (
            wanted
        )


def test_a_write_reaches_the_nas_and_comes_back(
    host: Host, settings: HostSettings, mounts: list[NfsMount]
) -> None:
    places = [("root", mount.path) for mount in mounts if not mount.read_only]
    for service in declared_services(settings):
        for data in service.data:
            mount = mount_of(mounts, data.path)
            if mount is not None and not mount.read_only:
                places.append((service.user, data.path))
    for user, folder in places:
        file = f"{folder}/.holdfast-probe"
        # Only SIGKILL ends a wait for a hard mount whose server is down.
        seen = host.run(
            f'timeout -s KILL 120 runuser -u {user} -- sh -ec \'trap "rm -f {file}" EXIT;'
            f" echo {user} | dd of={file} conv=fsync status=none; cat {file}'; ls {file}"
        )
        assert seen.stdout.strip() == user, seen.stderr


def test_a_read_only_mount_takes_no_write(host: Host, mounts: list[NfsMount]) -> None:
    read_only = [mount for mount in mounts if mount.read_only]
    if not read_only:
        pytest.skip("this host has no read-only mounts")
    for mount in read_only:
        attempt = host.run(f"timeout -s KILL 30 touch {mount.path}/.holdfast-probe")
        assert "Read-only file system" in attempt.stderr


def test_nothing_can_be_written_beneath_a_mount(host: Host, mounts: list[NfsMount]) -> None:
    for mount in mounts:
        attempt = 'ls -A "$bare"; touch "$bare/stray" 2>&1; rm -f "$bare/stray"'
        seen = host.run(beneath(mount.path, attempt)).stdout
        # The first line lists the folder, which must be empty.
        assert re.fullmatch(r"touch: .*: Operation not permitted\s*", seen), seen


def test_a_boot_does_not_wait_for_the_nas(host: Host, mounts: list[NfsMount]) -> None:
    assert host.run("grep -E '[[:space:]]nfs4?[[:space:]]' /etc/fstab").stdout == ""
    for mount in mounts:
        unit = shlex.quote(unit_name(mount.path, "mount"))
        wanted_by = host.check_output(f"systemctl show --value -p WantedBy,RequiredBy {unit}")
        assert "remote-fs.target" not in wanted_by
        assert "multi-user.target" not in wanted_by


def test_no_rpc_service_listens(host: Host, mounts: list[NfsMount]) -> None:
    # rpcbind, statd, lockd and the callback service of NFS 4.0 would appear in one of these. The
    # target rpcbind.target may be active: while its units are masked, it contains none.
    listening = host.check_output("ss -Htulpn")
    assert not re.search(r"rpcbind|rpc\.|:(111|20048|2049)\s", listening), listening
    units = "rpcbind.socket rpcbind.service rpc-statd.service"
    active = host.run(f"systemctl is-active {units}").stdout.split()
    assert "active" not in active, f"{units}: {active}"
    # A kernel thread's socket has no process, but every listening socket must have one.
    alone = [line for line in host.check_output("ss -Htulpn").splitlines() if "users:" not in line]
    assert alone == []


def test_models_have_the_declared_checksum_and_anyone_may_read_them(
    host: Host, storage: Storage, models: list[ModelFile]
) -> None:
    paths = {model_path(storage, model): model for model in models}
    seen = host.check_output(
        f"stat -c '%n %a %U' {' '.join(paths)}; runuser -u nobody -- sha256sum {' '.join(paths)}"
    )
    for path, model in paths.items():
        assert f"{path} 644 root" in seen.splitlines()
        assert f"{model.sha256}  {path}" in seen.splitlines()


def test_every_model_has_a_proof_that_fits_it(
    host: Host, storage: Storage, models: list[ModelFile]
) -> None:
    for model in models:
        path = model_path(storage, model)
        proof, stat = host.check_output(
            f"cat {storage.models_path}/{PROOFS}/{model.filename};"
            f" LC_ALL=C stat -c '%s %.9Y' {path}"
        ).splitlines()
        assert proof == f"{model.sha256} {stat}"


def test_checkpoints_match_their_checksum_list_and_anyone_may_read_them(
    host: Host, storage: Storage, checkpoints: list[Checkpoint]
) -> None:
    for checkpoint in checkpoints:
        path = checkpoint_path(storage, checkpoint)
        as_nobody = f"runuser -u nobody -- env --chdir={path}"
        seen = host.check_output(f"{as_nobody} sha256sum SHA256SUMS").split()[0]
        assert seen == checkpoint.sha256
        wrong = host.run(f"{as_nobody} sha256sum --check --quiet --strict SHA256SUMS")
        assert wrong.succeeded, wrong.stdout + wrong.stderr
        listed = host.check_output(f"cut -c67- {path}/SHA256SUMS").splitlines()
        there = host.check_output(f"find {path} -printf '%P %y %m %u\\n'").splitlines()
        assert sorted(there) == sorted(
            [" d 755 root", *(f"{name} f 644 root" for name in [*listed, "SHA256SUMS"])]
        )


def test_every_checkpoint_has_a_proof_that_fits_it(
    host: Host, storage: Storage, checkpoints: list[Checkpoint]
) -> None:
    for checkpoint in checkpoints:
        proof, listing = host.check_output(
            f"cat {storage.models_path}/{PROOFS}/{checkpoint_folder(checkpoint)};"
            f" cd {checkpoint_path(storage, checkpoint)} && {LISTING}"
        ).splitlines()
        assert proof == f"{checkpoint.sha256} {listing}"


def test_nothing_half_copied_is_left(host: Host, storage: Storage) -> None:
    assert host.check_output(f"find {storage.models_path} -name '*.part' -o -name '.new'") == ""


def test_the_model_check_is_armed_and_last_found_nothing_wrong(
    host: Host, storage: Storage
) -> None:
    seen = host.check_output(
        "systemctl is-enabled holdfast-models-verify.timer;"
        " systemctl is-active holdfast-models-verify.timer;"
        " systemctl show --value -p Result holdfast-models-verify.service;"
        " sha256sum < /etc/holdfast/models.sha256 > /dev/null && echo readable"
    )
    assert seen.splitlines() == ["enabled", "active", "success", "readable"]


def test_the_model_check_runs_in_its_sandbox(host: Host, storage: Storage) -> None:
    assert host.run("systemctl start holdfast-models-verify.service").succeeded
    line = host.check_output(
        "systemd-analyze security --no-pager holdfast-models-verify.service | tail -n 1"
    )
    exposure = re.search(r"service: ([0-9.]+)", line)
    assert exposure is not None
    assert float(exposure[1]) <= 2.0, line
