"""Have the real LiteLLM ask a cloud on loopback, and print what left and what was paid.

Run by an environment of locks/litellm.txt: `python -I litellm_wire.py FOLDER < CASES`, where
FOLDER has `clouds.py` and each case an ``api``, a ``model`` and a ``body``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import Any

ANSWERS = {
    "/v1/chat/completions": {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    },
    "/v1/messages": {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "{}"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 1},
    },
}
received: list[dict[str, Any]] = []
redirects = threading.Event()


class Handler(BaseHTTPRequestHandler):
    """A cloud that answers each of both APIs, or sends its caller to itself again."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        received.append({"path": self.path, "body": body.decode()})
        if redirects.is_set():
            self.send_response(307)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        text = json.dumps(ANSWERS.get(self.path, {})).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main(folder: str) -> None:
    """Ask each case of standard input; what came of them goes to standard output."""
    os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    # In this order, as the program does: what LiteLLM makes when it is read pays as well.
    litellm: Any = import_module("litellm")
    sys.path.insert(0, folder)
    clouds: Any = import_module("clouds")
    clouds.have_all_paid(import_module("httpx"))
    litellm.suppress_debug_info = True
    litellm.drop_params = True
    charges: list[str] = []

    class Ledger:
        """The account of one case."""

        def reserve(self, caller: Any, cloud: Any, usd: Decimal) -> int:
            """Count a charge that fits the budget."""
            if usd > caller.budget_usd:
                raise clouds.Refused(402, "too dear")
            charges.append(str(usd))
            return len(charges)

        def settle(self, *settled: Any) -> None:
            """Nothing: what was reserved is what is looked at."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at = f"http://127.0.0.1:{server.server_port}"
    told = []
    for case in json.load(sys.stdin):
        charges.clear()
        received.clear()
        (redirects.set if case.get("redirects") else redirects.clear)()
        base = at if case["api"] == "anthropic" else f"{at}/v1"
        # A dollar for each token of a prompt, so that what was reserved tells how many.
        cloud = clouds.Cloud(
            "one", case["api"], base, case["model"], Decimal(10**6), Decimal(0), 4096
        )
        caller = clouds.Caller("alice", ("one",), Decimal(case.get("budget", 10**9)), "day")
        asker = clouds.Asker(litellm.completion, [cloud], {"one": "sk"}, Ledger(), 30)
        status = 200
        try:
            _, parts = asker.answer(caller, case["body"])
            list(parts)
        except clouds.Refused as refused:
            status = refused.status
        told.append({"status": status, "charges": list(charges), "received": list(received)})
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
