"""vLLM's OpenAI-compatible server: adapters loaded at run time, eight in one batch, `context:<id>` by the plugin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine_setup import MAX_TOKENS, TEXTS, environment
from generative_adapter.cli.main import app
from generative_adapter.export.peft import TENSOR_FILE, save_peft
from generative_adapter.export.vllm_server import VllmServer
from running_vllm import Refused, RunningVllm

pytestmark = pytest.mark.engines
_RANK = 512


class Server:
    """A running server.

    Args:
        running: the process.
        adapters: folder of what the plugin makes.
    """

    def __init__(self, running: RunningVllm, adapters: Path) -> None:
        self.url, self.post, self.get, self.adapters = running.url, running.post, running.get, adapters

    def load(self, name: str, folder: Path) -> None:
        self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def names(self) -> set[str]:
        return {model["id"] for model in self.get("/v1/models")["data"]}

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
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "32"]
    options += ["--enable-lora", "--max-loras", "8", "--max-cpu-loras", "16", "--max-lora-rank", str(_RANK)]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "GENERATIVE_ADAPTER_STORE": str(store),
        "GENERATIVE_ADAPTER_FOLDERS": str(work / "adapters"),
    }
    with RunningVllm(python, base_folder, work, options, settings) as running:
        yield Server(running, work / "adapters")


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


def test_units_that_take_tokens_answer_as_ours(server: Server, model, unit_adapters, unit_prompts, end, tmp_path):
    for number, adapter in enumerate(unit_adapters):
        save_peft(adapter, tmp_path / str(number), model.base.name, model=model.base.model, dtype="fp32")
        server.load(f"units-{number}", tmp_path / str(number))
    with ThreadPoolExecutor(len(unit_prompts)) as pool:
        told = list(pool.map(lambda prompt: server.answer(f"units-{prompt.text}", prompt.ids, end), unit_prompts))
    assert told == [prompt.answer for prompt in unit_prompts]


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


def test_a_trimmed_adapter_is_made_anew_when_it_is_asked_for(server: Server, memories, prompts, end, store: Path):
    memories[2].save(store / "trimmed.safetensors")
    own = [prompt for prompt in prompts if prompt.text == 2]
    before = [server.answer("context:trimmed", prompt.ids, end) for prompt in own]
    assert list(server.adapters.glob("trimmed/*")) and "context:trimmed" in server.names()
    command = ["trim-adapters", str(server.adapters), "--max-gb", "0", "--vllm", server.url, "--grace-seconds", "0"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["kept"] == 0 and not list(server.adapters.iterdir())
    assert not any(name.startswith("context:") for name in server.names())
    assert [server.answer("context:trimmed", prompt.ids, end) for prompt in own] == before
    assert list(server.adapters.glob("trimmed/*")) and "context:trimmed" in server.names()


def test_a_replaced_memory_is_served_after_unloading(server: Server, memories, prompts, end, store: Path):
    own = [prompt for prompt in prompts if prompt.text == 1]

    def answers(name: str) -> list[str]:
        return [server.answer(f"context:{name}", prompt.ids, end) for prompt in own]

    for name, memory in (("before", memories[0]), ("after", memories[1]), ("replaced", memories[0])):
        memory.save(store / f"{name}.safetensors")
    before, after = answers("before"), answers("after")
    assert before != after
    assert answers("replaced") == before
    memories[1].save(store / "replaced.safetensors")
    assert answers("replaced") == before, "vLLM keeps what it resolved"
    VllmServer(server.url).unload(["replaced"])
    assert answers("replaced") == after
    assert len(list(server.adapters.glob("replaced/*"))) == 2


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


@pytest.mark.parametrize("rank", [8, 16, 32, 64, 128, 256, 320, 512])
def test_every_rank_loads(server: Server, model, memories, prompts, end, tmp_path, rank):
    """The answers of an adapter truncated, or padded where it has less, are those that we give under it."""
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
