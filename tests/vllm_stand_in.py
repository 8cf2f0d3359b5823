"""A small HTTP server that unloads adapters as vLLM's does: for tests without vLLM (tests/engines has them with it)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_PATH = "/v1/unload_lora_adapter"


class StandIn:
    """What the server holds and was asked.

    Attributes:
        url: of the server.
        names: adapters that it holds.
        asked: names that it was to unload, in order.
        key: the API key that it wants.
        unloads: whether it has the endpoint, which vLLM has only with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.
        broken: answers 500 to every unloading.
        on_unload: called with each name before it is unloaded.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.names: set[str] = set()
        self.asked: list[str] = []
        self.key: str | None = None
        self.unloads, self.broken = True, False
        self.on_unload: Callable[[str], None] = lambda name: None

    def answer(self, method: str, path: str, authorization: str | None, body: bytes) -> tuple[int, str]:
        if self.key is not None and authorization != f"Bearer {self.key}":
            return 401, '{"error": "Unauthorized"}'
        if path != _PATH or not self.unloads:
            return 404, '{"detail": "Not Found"}'
        if method != "POST":
            return 405, '{"detail": "Method Not Allowed"}'
        if self.broken:
            return 500, "EngineCore encountered an issue"
        name = json.loads(body)["lora_name"]
        self.on_unload(name)
        self.asked.append(name)
        if name not in self.names:
            return 404, f'{{"error": {{"message": "The lora adapter \'{name}\' cannot be found."}}}}'
        self.names.remove(name)
        return 200, f"Success: LoRA adapter '{name}' removed successfully."


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A running one, on a free port of this machine."""
    held: list[StandIn] = []

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, text = held[0].answer(self.command, self.path, self.headers.get("Authorization"), body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = _reply

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        held.append(StandIn(f"http://127.0.0.1:{server.server_port}"))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield held[0]
        finally:
            server.shutdown()
            thread.join()
