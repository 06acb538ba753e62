"""The program that asks clouds for a router: its unit, its configuration, and its keys.

It uses LiteLLM as a library, in a process of its own besides the router's. Only its user may call
the declared clouds, and only it holds their keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from facts.places import CONFIGURATION, CREDENTIALS
from holdfast.completion import CHAT_PATH
from holdfast.engines.servers import declared_engines
from holdfast.host_programs import clouds as clouds_program
from holdfast.ledger import SOCKET_FOLDER
from holdfast.python_environment import PythonEnvironment
from holdfast.routing import LEDGER_UNIT, clouds_service, providers, router_service
from holdfast.sandbox import RUN, Directive
from holdfast.secrets import Secret
from holdfast.service import Credential, File, Program, UnixSocket
from holdfast.settings import HostSettings, Router
from holdfast.shipping import path_of

LITELLM = "litellm"
CONFIGURATIONS = f"{CONFIGURATION}/clouds"
"""The folder with the configuration for each router."""
LOCK = Path(__file__).resolve().parent.parent / "locks" / "litellm.txt"
PATH = CHAT_PATH
"""The only path that clouds are asked at."""


def stem(router: Router) -> str:
    """The beginning of its units' names."""
    return f"holdfast-clouds-{router.name}"


def socket(router: Router) -> str:
    """The socket of the program; only the router's user may connect."""
    return f"{RUN}/{stem(router)}.sock"


def configuration_path(router: Router) -> str:
    """The path of its configuration, which contains no secret."""
    return f"{CONFIGURATIONS}/{router.name}.json"


def key_file(router: Router) -> str:
    """The file with the clouds' keys; only root may read it, and systemd passes it on."""
    return f"{CREDENTIALS}/{stem(router)}-keys"


def serves(settings: HostSettings, router: Router) -> str:
    """The model name that callers send: that of the router's engines, if it has any."""
    declared = {engine.name: engine for engine in declared_engines(settings)}
    if router.engines:
        return declared[router.engines[0]].checkpoint
    return settings.floor.model if router.floor and settings.floor else router.name


def configuration(settings: HostSettings, router: Router) -> str:
    """The text of its configuration, JSON."""
    clouds = [
        {
            **provider.model_dump(include={"name", "api", "base_url", "model", "max_tokens"}),
            # As text, because binary fractions cannot represent money.
            "input_usd": str(provider.input_usd),
            "output_usd": str(provider.output_usd),
        }
        for provider in providers(settings, router)
    ]
    callers = {
        key.name: {"clouds": key.clouds, "budget_usd": str(key.budget_usd), "period": key.period}
        for key in router.keys
        if key.clouds
    }
    found = {
        "serves": serves(settings, router),
        "ledger": SOCKET_FOLDER,
        "clouds": clouds,
        "callers": callers,
    }
    return json.dumps(found, indent=1) + "\n"


def secret_names(settings: HostSettings, router: Router) -> dict[str, str]:
    """The name of each cloud to the name of the secret with its key."""
    return {each.name: each.api_key for each in providers(settings, router)}


def keys(settings: HostSettings, router: Router, read: Callable[[str], Secret]) -> str:
    """The text of its credential; ``read`` returns a secret by its name."""
    names = secret_names(settings, router)
    return json.dumps({cloud: read(name).get_secret_value() for cloud, name in names.items()})


def program(settings: HostSettings, router: Router) -> Program | None:
    """The program that asks clouds for a router; None for a router without clouds."""
    service = clouds_service(settings, router)
    if service is None:
        return None
    index = settings.clouds.packages if settings.clouds else None
    litellm = PythonEnvironment(LITELLM, LOCK.read_text(), settings.distribution, index)
    path = configuration_path(router)
    # It ignores the host's environment, and LiteLLM fetches nothing when it starts.
    variables = (
        "CREDENTIALS_DIRECTORY=%d",
        "NOTIFY_SOCKET=${NOTIFY_SOCKET}",
        "LITELLM_MODE=PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP=True",
        "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
    )
    start = ("/usr/bin/env", "--ignore-environment", *variables)
    return Program(
        service=service,
        description=f"Holdfast: clouds of the router {router.name}",
        # LiteLLM takes seconds to import.
        kind="notify",
        source=clouds_program,
        python=litellm,
        command=(*start, f"{litellm.folder}/bin/python", "-I", path_of(clouds_program), path),
        credentials=(
            Credential("keys", key_file(router), lambda read: keys(settings, router, read)),
        ),
        files=(File(path, configuration(settings, router)),),
        start_seconds=300,
        restart="always",
        restart_seconds=2,
        at_boot=True,
        order=(
            Directive("Wants", LEDGER_UNIT, "it records its spending there"),
            Directive("After", LEDGER_UNIT),
        ),
        socket=UnixSocket(socket(router), router_service(router).user),
    )
