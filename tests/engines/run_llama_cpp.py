"""Greedy answers of llama.cpp, for the tests beside it: run by the Python of the engine's own environment.

Reads from standard input {"library": path, "model": path, "adapters": [path or null], "prompts": [[adapter, [ids]]],
"max_tokens": n, "end": [ids]} and writes {"answers": [[ids]]}: of each prompt the tokens up to an end. The library is
the one inside the package llama-cpp-cffi, whose Python part has no adapters.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def load_library(path: str) -> tuple[Any, Any]:
    """The C functions and cffi's side of them."""
    name = Path(path).name.partition(".")[0]
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    try:
        module = importlib.util.module_from_spec(specification)
    except ImportError as error:
        if "__cxa_call_terminate" not in str(error):
            raise
        _add_terminate()
        module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.lib, module.ffi


def _add_terminate() -> None:
    """Gives the library the one function of a newer libstdc++ that older ones lack: the end after a lost exception."""
    with tempfile.TemporaryDirectory() as folder:
        source, shared = Path(folder) / "terminate.c", Path(folder) / "terminate.so"
        source.write_text("#include <stdlib.h>\nvoid __cxa_call_terminate(void *e) { (void)e; abort(); }\n")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", shared, source], check=True)
        ctypes.CDLL(str(shared), mode=ctypes.RTLD_GLOBAL)


def answer(
    lib: Any, ffi: Any, context: Any, num_words: int, prompt: list[int], limit: int, end: list[int]
) -> list[int]:
    """The likeliest next tokens, one after another."""
    lib.llama_kv_self_clear(context)
    given: list[int] = []
    pending = prompt
    while len(given) < limit:
        tokens = ffi.new("llama_token[]", pending)
        status = lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(pending)))
        if status:
            raise RuntimeError(f"llama_decode gave {status}")
        logits = ffi.unpack(lib.llama_get_logits_ith(context, -1), num_words)
        best = max(range(num_words), key=logits.__getitem__)
        if best in end:
            break
        given.append(best)
        pending = [best]
    return given


def main() -> None:
    """Answers all prompts; each adapter is loaded once and set for its prompts."""
    job = json.load(sys.stdin)
    lib, ffi = load_library(job["library"])
    lib.llama_backend_init()
    settings = lib.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(job["model"].encode(), settings)
    if model == ffi.NULL:
        raise RuntimeError(f"llama.cpp can't load {job['model']}")
    limits = lib.llama_context_default_params()
    limits.n_ctx, limits.n_batch, limits.n_threads, limits.n_threads_batch = 1024, 512, 2, 2
    context = lib.llama_init_from_model(model, limits)
    num_words = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    adapters = []
    for path in job["adapters"]:
        adapter = lib.llama_adapter_lora_init(model, path.encode())
        if adapter == ffi.NULL:
            raise RuntimeError(f"llama.cpp can't load the adapter {path}")
        adapters.append(adapter)
    answers = []
    for number, prompt in job["prompts"]:
        lib.llama_clear_adapter_lora(context)
        if number is not None:
            lib.llama_set_adapter_lora(context, adapters[number], 1.0)
        answers.append(answer(lib, ffi, context, num_words, prompt, job["max_tokens"], job["end"]))
    json.dump({"answers": answers}, sys.stdout)


if __name__ == "__main__":
    main()
