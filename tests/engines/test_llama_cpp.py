"""llama.cpp itself, base and adapters as GGUF: the same answers, token by token."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engine_setup import MAX_TOKENS, environment
from generative_adapter.base_model.loading import find_embedded_gguf
from generative_adapter.export.gguf import save_gguf

pytestmark = pytest.mark.engines
gguf: Any = importlib.import_module("gguf")


def full_precision(source: Path, target: Path) -> None:
    """A GGUF file with the same model in float32: what our own base model is loaded with."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def python() -> Path:
    return environment("llama-cpp")


@pytest.fixture(scope="module")
def library(python: Path) -> Path:
    found = list(python.parents[1].glob("lib/python*/site-packages/llama/_llama_cpp_cpu*.so"))
    assert found, "llama-cpp-cffi has no library for the CPU in its environment"
    return found[0]


@pytest.fixture(scope="module")
def base_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama-cpp") / "base.gguf"
    full_precision(find_embedded_gguf(), path)
    return path


def run(python: Path, **job: Any) -> list[list[int]]:
    script = Path(__file__).parent / "run_llama_cpp.py"
    given = json.dumps(job)
    done = subprocess.run([python, script], input=given, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)["answers"]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_twenty_answers_are_ours(model, memories, prompts, end, python, library, base_gguf, tmp_path, dtype):
    paths = []
    for number, memory in enumerate(memories):
        path = tmp_path / f"{number}.gguf"
        save_gguf(model.adapter(memory), path, model.base.model, model.base.name, dtype=dtype)
        paths.append(str(path))
    answers = run(
        python,
        library=str(library),
        model=str(base_gguf),
        adapters=paths,
        prompts=[[prompt.text, prompt.ids] for prompt in prompts],
        max_tokens=MAX_TOKENS,
        end=end,
    )
    told = [model.base.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    wrong = [(one, prompt.answer) for one, prompt in zip(told, prompts, strict=True) if one != prompt.answer]
    assert len(wrong) <= (0 if dtype == "fp32" else 2), wrong  # shorter numbers may tip what is close


def test_units_that_take_tokens_answer_as_ours(
    model, unit_adapters, unit_prompts, end, python, library, base_gguf, tmp_path
):
    paths = []
    for number, adapter in enumerate(unit_adapters):
        paths.append(str(tmp_path / f"{number}.gguf"))
        save_gguf(adapter, paths[-1], model.base.model, model.base.name, dtype="fp32")
    answers = run(
        python,
        library=str(library),
        model=str(base_gguf),
        adapters=paths,
        prompts=[[prompt.text, prompt.ids] for prompt in unit_prompts],
        max_tokens=MAX_TOKENS,
        end=end,
    )
    told = [model.base.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    wrong = [(one, prompt.answer) for one, prompt in zip(told, unit_prompts, strict=True) if one != prompt.answer]
    assert len(wrong) <= 1, wrong  # these answers are free sentences, and llama.cpp keeps keys and values in float16


def test_without_an_adapter_the_plain_model_answers(model, prompts, end, python, library, base_gguf):
    plain = model.answer(["What is the capital of France?"], max_new_tokens=MAX_TOKENS)[0].text
    given = next(prompt.ids for prompt in prompts if "France" in model.base.tokenizer.decode(prompt.ids))
    answers = run(
        python,
        library=str(library),
        model=str(base_gguf),
        adapters=[],
        prompts=[[None, given]],
        max_tokens=MAX_TOKENS,
        end=end,
    )
    assert model.base.tokenizer.decode(answers[0], skip_special_tokens=True).strip() == plain


def test_a_damaged_adapter_is_refused(model, memories, python, library, base_gguf, tmp_path):
    path = tmp_path / "a.gguf"
    save_gguf(model.adapter(memories[0]), path, model.base.model, model.base.name)
    path.write_bytes(path.read_bytes()[:-5000])
    job = {"library": str(library), "model": str(base_gguf), "adapters": [str(path)], "prompts": []}
    script = Path(__file__).parent / "run_llama_cpp.py"
    done = subprocess.run(
        [python, script],
        input=json.dumps(job | {"max_tokens": 1, "end": []}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
