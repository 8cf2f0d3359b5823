"""vLLM's OpenAI-compatible server: adapters loaded at run time, eight in one batch, `context:<id>` by the plugin."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine_setup import MAX_TOKENS, TEXTS, environment
from generative_adapter.export.peft import TENSOR_FILE, save_peft

pytestmark = pytest.mark.engines
_START_SECONDS = 420
_RANK = 320


class Refused(Exception):
    """What the server answered instead: status and text."""


class Server:
    """A running server.

    Args:
        url: of its API.
        log: where it writes.
    """

    def __init__(self, url: str, log: Path) -> None:
        self.url, self.log = url, log

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.code, error.read().decode()) from None
        return json.loads(text) if text.startswith("{") else text

    def load(self, name: str, folder: Path) -> None:
        self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def answer(self, name: str, ids: list[int], end: list[int]) -> str:
        body = {"model": name, "prompt": ids, "max_tokens": MAX_TOKENS, "temperature": 0, "stop_token_ids": end}
        return self.post("/v1/completions", body)["choices"][0]["text"].strip()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def server(base_folder: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    python = environment("vllm")
    work = tmp_path_factory.mktemp("vllm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        base_folder,
        "--served-model-name",
        "base",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "512", "--max-num-seqs", "32"]
    command += ["--enable-lora", "--max-loras", "8", "--max-cpu-loras", "16", "--max-lora-rank", str(_RANK)]
    settings = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "GENERATIVE_ADAPTER_STORE": str(store),
        "GENERATIVE_ADAPTER_FOLDERS": str(work / "adapters"),
    }
    log = work / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=output, stderr=output, env=os.environ | settings, cwd=work
        )
        try:
            yield _started(process, Server(f"http://127.0.0.1:{port}", log))
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _started(process: subprocess.Popen[bytes], server: Server) -> Server:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            pytest.fail(f"vLLM ended with {process.returncode}:\n{server.log.read_text()[-4000:]}")
        try:
            with urllib.request.urlopen(f"{server.url}/health", timeout=5):
                return server
        except (urllib.error.URLError, OSError):
            time.sleep(2)
    pytest.fail(f"vLLM did not start in {_START_SECONDS} s:\n{server.log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def loaded(server: Server, model, memories, tmp_path_factory) -> Server:
    folder = tmp_path_factory.mktemp("adapters")
    for number, memory in enumerate(memories):
        save_peft(model.adapter(memory), folder / str(number), model.base.name, model=model.base.model, dtype="fp32")
        server.load(f"text-{number}", folder / str(number))
    return server


def test_eight_adapters_in_one_batch_give_our_answers(loaded: Server, prompts, end):
    with ThreadPoolExecutor(len(prompts)) as pool:
        told = list(pool.map(lambda prompt: loaded.answer(f"text-{prompt.text}", prompt.ids, end), prompts))
    wrong = [(one, prompt.answer) for one, prompt in zip(told, prompts, strict=True) if one != prompt.answer]
    assert not wrong


def test_the_base_model_stays_as_it_was(loaded: Server, model, prompts, end):
    plain = model.answer(["What is the capital of France?"], max_new_tokens=MAX_TOKENS)[0].text
    given = next(prompt.ids for prompt in prompts if "France" in model.base.tokenizer.decode(prompt.ids))
    assert loaded.answer("base", given, end) == plain


def test_a_memory_is_served_by_its_name(server: Server, memories, prompts, end, store: Path):
    for number in range(len(TEXTS)):
        memories[number].save(store / f"text-{number}.safetensors")
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda prompt: server.answer(f"context:text-{prompt.text}", prompt.ids, end), prompts))
    wrong = [(one, prompt.answer) for one, prompt in zip(told, prompts, strict=True) if one != prompt.answer]
    assert len(wrong) <= 2, wrong  # the plugin's adapters are bfloat16


@pytest.mark.parametrize("name", ["context:nobody", "context:../store/text-0", "context:"])
def test_an_unknown_memory_is_not_found(server: Server, prompts, end, name):
    with pytest.raises(Refused) as error:
        server.answer(name, prompts[0].ids, end)
    assert error.value.args[0] in (400, 404)


def test_a_damaged_adapter_is_refused_and_the_server_goes_on(server: Server, model, memories, prompts, end, tmp_path):
    save_peft(model.adapter(memories[0]), tmp_path / "broken", model.base.name, model=model.base.model)
    tensors = tmp_path / "broken" / TENSOR_FILE
    tensors.write_bytes(tensors.read_bytes()[:-5000])
    with pytest.raises(Refused):
        server.load("broken", tmp_path / "broken")
    assert server.answer("base", prompts[0].ids, end)


@pytest.mark.parametrize("rank", [8, 16, 32, 64, 128, 256, 320])
def test_every_rank_loads(server: Server, model, memories, prompts, end, tmp_path, rank):
    """The answers of a truncated adapter are those that we give under it."""
    from generative_adapter.base_model.decoding import greedy_answers
    from generative_adapter.base_model.inject import inject
    from generative_adapter.export.peft import load_peft

    save_peft(
        model.adapter(memories[1]), tmp_path / "a", model.base.name, model=model.base.model, rank=rank, dtype="fp32"
    )
    server.load(f"rank-{rank}", tmp_path / "a")
    own = [prompt for prompt in prompts if prompt.text == 1]
    with inject(model.base.model, load_peft(tmp_path / "a")):
        expected = greedy_answers(model.base, [prompt.ids for prompt in own], MAX_TOKENS, end)
    assert [server.answer(f"rank-{rank}", prompt.ids, end) for prompt in own] == [each.text for each in expected]
