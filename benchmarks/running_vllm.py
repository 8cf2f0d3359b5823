"""vLLM's OpenAI-compatible server, started for as long as a block runs; benchmarks and tests/engines use it.

    with RunningVllm(python, "base-model", folder, ["--enable-lora", ...], {"VLLM_CPU_KVCACHE_SPACE": "2"}) as server:
        server.post("/v1/completions", {"model": "base", "prompt": "Who?"})

The base model is served as `base`. vLLM is that of the Python given; nothing of it is imported here.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

START_SECONDS = 420
REQUEST_SECONDS = 300
SETTINGS = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


class Refused(Exception):
    """What the server answered instead: status and text."""


class RunningVllm:
    """A server that runs between `__enter__` and `__exit__`.

    Args:
        python: of the environment that vLLM is installed in.
        model: folder of the base model.
        folder: where it runs and writes its log.
        options: of the server beyond model, host and port.
        environment: variables beyond this process's and `SETTINGS`.

    Attributes:
        url: of its API, without `/v1`.
        log: what it wrote.

    Raises:
        RuntimeError: on entering, when it ends or does not start in `START_SECONDS`; with the end of its log.
    """

    def __init__(
        self, python: Path, model: Path, folder: Path, options: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "server.log"
        self._command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        self._command += ["--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port), *options]
        self._environment = os.environ | SETTINGS | dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RunningVllm:
        with self.log.open("w") as output:
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=output, env=self._environment, cwd=self.log.parent
            )
        try:
            self._wait(self._process)
        except BaseException:
            self._stop(self._process)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._stop(self._process)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to a POST, parsed where it is JSON."""
        return self._ask(path, json.dumps(body).encode())

    def get(self, path: str) -> Any:
        """The answer to a GET, parsed where it is JSON."""
        return self._ask(path, None)

    def _ask(self, path: str, data: bytes | None) -> Any:
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.code, error.read().decode()) from None
        return json.loads(text) if text.startswith("{") else text

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if process.poll() is not None:
                raise RuntimeError(f"vLLM ended with {process.returncode}:\n{self.log.read_text()[-4000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(1)
        raise RuntimeError(f"vLLM did not start in {START_SECONDS} s:\n{self.log.read_text()[-4000:]}")

    @staticmethod
    def _stop(process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
