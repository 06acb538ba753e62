"""A cloud as its callers see it: OpenAI's API over TLS, which notes every request.

It answers Anthropic's messages, too, but for streams.

`python -m tests.lab.services.cloud_api DIRECTORY CERTIFICATE KEY` answers on port 443 of every
address. In the directory, `asked` gets a line a request, and a file called as a cloud is holds the
status that this cloud answers with.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BREAKS = 0
"""The status to wish for a stream that fails in the middle; it begins with 200."""
PROMPT_TOKENS = 10
ANSWER_TOKENS = 20
"""What every answer is said to have cost, unless `max_tokens` asks for less."""


class Server(ThreadingHTTPServer):
    """Both families on one socket."""

    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        """Take IPv4's callers too."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of callers who hang up."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    directory: Path

    def do_GET(self) -> None:
        """List the models in answer to every GET."""
        self._note({})
        self._send(200, {"object": "list", "data": [{"id": "big", "object": "model"}]})

    def do_POST(self) -> None:
        """Answer with what was asked, or with the status that was wished for."""
        said = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            body = json.loads(said)
        except ValueError:
            body = {}
        self._note(body, len(said))
        wished = self.directory / self._cloud
        status = int(wished.read_text()) if wished.exists() else 200
        if status not in (200, BREAKS):
            self._send(status, {"error": {"message": "as wished", "type": "lab", "code": status}})
            return
        answered = min(int(body.get("max_tokens") or ANSWER_TOKENS), ANSWER_TOKENS)
        usage = {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": answered,
            "total_tokens": PROMPT_TOKENS + answered,
        }
        if self.path.endswith("/messages"):
            self._send(200, self._message(body, answered))
            return
        chat = self.path.endswith("/chat/completions")
        if body.get("stream"):
            self._stream(body, usage, chat=chat, breaks=status == BREAKS)
            return
        text = f"{self._cloud} answers"
        choice: dict[str, object] = {"index": 0, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        self._send(200, self._envelope(body, chat=chat) | {"choices": [choice], "usage": usage})

    @property
    def _cloud(self) -> str:
        return (self.headers.get("Host") or "").partition(":")[0]

    def _envelope(self, body: dict[str, Any], *, chat: bool, part: bool = False) -> dict[str, Any]:
        kind = (
            ("chat.completion.chunk" if part else "chat.completion") if chat else "text_completion"
        )
        return {"id": "lab", "object": kind, "created": 1, "model": body.get("model", "big")}

    def _stream(
        self, body: dict[str, Any], usage: dict[str, int], *, chat: bool, breaks: bool
    ) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for word in (self._cloud, " answers"):
            choice: dict[str, object] = {"index": 0, "finish_reason": None}
            choice |= {"delta": {"content": word}} if chat else {"text": word}
            self._event(self._envelope(body, chat=chat, part=True) | {"choices": [choice]})
        if breaks:
            self._event({"error": {"message": "as wished", "type": "lab", "code": 500}})
            return
        last: dict[str, object] = {"index": 0, "finish_reason": "stop"}
        last["delta" if chat else "text"] = {} if chat else ""
        self._event(self._envelope(body, chat=chat, part=True) | {"choices": [last]})
        if (body.get("stream_options") or {}).get("include_usage"):
            ended = self._envelope(body, chat=chat, part=True)
            self._event(ended | {"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _event(self, said: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(said)}\n\n".encode())

    def _message(self, body: dict[str, Any], answered: int) -> dict[str, object]:
        return {
            "id": "lab",
            "type": "message",
            "role": "assistant",
            "model": body.get("model", "big"),
            "content": [{"type": "text", "text": f"{self._cloud} answers"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": PROMPT_TOKENS, "output_tokens": answered},
        }

    def _note(self, body: object, size: int = 0) -> None:
        key = self.headers.get("Authorization", "")
        noted = {"cloud": self._cloud, "path": self.path, "key": key, "body": body, "bytes": size}
        with (self.directory / "asked").open("a") as asked:
            asked.write(json.dumps(noted) + "\n")

    def _send(self, status: int, said: object) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


if __name__ == "__main__":
    directory, certificate, key = sys.argv[1:]
    Handler.directory = Path(directory)
    server = Server(("::", 443), Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    # Each connection shakes hands in its own thread: a caller who never speaks holds up no other.
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    server.serve_forever()
