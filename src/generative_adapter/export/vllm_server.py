"""VllmServer: the one thing that is asked of a running vLLM server, to let go of a memory's adapter.

Leaves out: requests for answers, and what vLLM asks of us (`vllm_plugin`).
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable
from urllib.parse import urlsplit

from generative_adapter.errors import ConfigError
from generative_adapter.export.vllm_plugin import PREFIX

_UNLOAD = "/v1/unload_lora_adapter"
_TOLD_CHARACTERS = 300


class VllmServer:
    """A vLLM server that resolves `context:<id>`.

    Args:
        url: of the server, `http://host:port`, without `/v1`.
        api_key: what it was started with as `--api-key`.
        timeout_seconds: of one request.

    Raises:
        ConfigError: when the URL is none.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout_seconds: float = 30.0) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"{url!r} is no URL of a vLLM server; give one such as http://localhost:8000")
        self._api_key, self._timeout_seconds = api_key, timeout_seconds

    def check(self) -> None:
        """Makes sure that the server lets adapters be unloaded.

        Raises:
            ConfigError: when it can't be reached, refuses the API key, or was started without
                `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`.
        """
        status, text = self._ask(None)
        if status == 404:
            raise ConfigError(
                f"{self.url} has no {_UNLOAD}; start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"
            )
        if status != 405:  # it is there, and takes only POST
            raise ConfigError(self._refusal(status, text))

    def unload(self, memory_ids: Iterable[str]) -> None:
        """Has the server forget the adapters of memories; the next request of each resolves it again.

        Requests that it has taken in already go on under the adapter of before. A name that it doesn't know is none to
        forget.

        Raises:
            ConfigError: when it can't be reached or refuses.
        """
        for memory_id in memory_ids:
            status, text = self._ask({"lora_name": f"{PREFIX}{memory_id}"})
            if status not in (200, 404):
                raise ConfigError(self._refusal(status, text))

    def _ask(self, body: dict[str, str] | None) -> tuple[int, str]:
        """Status and text of a POST, or of a GET without a body."""
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{_UNLOAD}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_seconds) as response:
                return response.status, response.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(errors="replace")
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            raise ConfigError(
                f"the vLLM server {self.url} can't be reached ({reason}), so nothing is deleted that it may hold; "
                "start it, or leave it out where it is gone"
            ) from error

    def _refusal(self, status: int, text: str) -> str:
        remedy = "; set VLLM_API_KEY to its key" if status in (401, 403) else ""
        return f"{self.url}{_UNLOAD} answered {status}: {text[:_TOLD_CHARACTERS].strip()}{remedy}"
