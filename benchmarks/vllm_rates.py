"""Latencies and answers a second of a vLLM server that resolves memories by name; a part of `engine_rates.py`."""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from generative_adapter import ContextMemory, GenerativeAdapter, MemoryStore, save_base_model
from generative_adapter.base_model.prompts import question_ids
from generative_adapter.export.peft import RANKS
from running_vllm import RunningVllm

CONCURRENCIES, ADAPTERS = (1, 8, 32), (1, 8)
MIN_LORAS = max(ADAPTERS)
STORE_FORM = "bfloat16"
_INSTALLED = (
    "from importlib.metadata import distributions; "
    "print(*{f'{each.name} {each.version}' for each in distributions() if 'vllm' in each.name})"
)


def vllm_rates(
    options: argparse.Namespace,
    model: GenerativeAdapter,
    memories: Sequence[ContextMemory],
    work: Path,
    repeats: int,
    rounds: int,
) -> dict[str, Any]:
    """Latencies and answers/s of a server that runs for as long.

    Args:
        options: of `engine_rates.py`.
        model: whose memories they are.
        memories: to serve under many names.
        work: an empty part of the disk.
        repeats: requests of each kind, at least.
        rounds: requests of each of those that come at a time.
    """
    rank = next(rank for rank in RANKS if rank >= model.adapter(memories[0]).rank)
    names = [f"m{number:03d}" for number in range(options.max_cpu_loras + options.max_loras)]
    for name, memory in zip(["warm-up", *names], itertools.cycle(memories), strict=False):
        MemoryStore(work / "store").put(name, memory, STORE_FORM)
    save_base_model(model.base, work / "base")
    wording = model.checkpoint.prompt
    prompt = question_ids(model.base.tokenizer, wording, "Who keeps the keys of the boat house?")
    given = [*shlex.split(options.vllm_options), "--max-model-len", "512", "--max-num-seqs", str(max(CONCURRENCIES))]
    given += ["--no-enable-prefix-caching", "--enable-lora", "--max-lora-rank", str(rank)]
    given += ["--max-loras", str(options.max_loras), "--max-cpu-loras", str(options.max_cpu_loras)]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "2"),
        "GENERATIVE_ADAPTER_STORE": str(work / "store"),
        "GENERATIVE_ADAPTER_FOLDERS": str(work / "adapters"),
    }
    if options.generator:
        settings["GENERATIVE_ADAPTER_GENERATOR"] = str(Path(options.generator).absolute())
    python = Path(options.vllm_python).absolute()
    installed = subprocess.run([python, "-c", _INSTALLED], capture_output=True, text=True, check=True).stdout
    started = time.perf_counter()
    with RunningVllm(python, work / "base", work, given, settings) as server:
        start_seconds = time.perf_counter() - started

        def ask(name: str) -> None:
            body = {"model": name, "prompt": prompt, "max_tokens": options.answer_tokens, "temperature": 0}
            answer = server.post("/v1/completions", body | {"ignore_eos": True})
            if answer["usage"]["completion_tokens"] != options.answer_tokens:
                raise RuntimeError(f"an answer of {options.answer_tokens} tokens was expected: {answer}")

        def ask_memory(name: str) -> None:
            ask(f"context:{name}")

        ask("base")
        base = [timed(ask, "base") for _ in range(repeats)]
        first_of_all = timed(ask_memory, "warm-up")  # reads the generator
        places = latencies_by_place(ask_memory, names, options.max_cpu_loras, repeats)
        rates = {
            str(adapters): {str(n): answers_per_second(ask_memory, names[:adapters], n, rounds) for n in CONCURRENCIES}
            for adapters in ADAPTERS
        }
    return {
        "installed": installed.strip(),
        "options": " ".join(given),
        "max_loras": options.max_loras,
        "max_cpu_loras": options.max_cpu_loras,
        "prompt_tokens": len(prompt),
        "answer_tokens": options.answer_tokens,
        "start_seconds": round(start_seconds, 1),
        "first_adapter_of_all_seconds": round(first_of_all, 3),
        "latency_seconds": {"base": summary(base)} | {place: summary(each) for place, each in places.items()},
        "answers_per_second": rates,
    }


def latencies_by_place(
    ask: Callable[[str], None], names: Sequence[str], max_cpu_loras: int, repeats: int
) -> dict[str, list[float]]:
    """Latencies by where a request finds its adapter: `slot`, `cpu`, `disk`, `first` (nowhere, it is made).

    vLLM's slots and its cache drop what was least recently used. Going round and round through more names than fit,
    each name has just been dropped when its turn comes: through as many as the cache holds, which are more than there
    are slots, every request finds its adapter in the cache and in no slot; through more than that, on disk only.

    Args:
        ask: puts a question to the memory of that name.
        names: as many memories as slots and cache hold together; none has been asked for.
        max_cpu_loras: adapters in the cache; more than slots.
        repeats: requests of each kind, at least.
    """
    first = [timed(ask, name) for name in names]
    slot = [timed(ask, names[-1]) for _ in range(repeats)]
    cached, others = names[:max_cpu_loras], names[max_cpu_loras:]
    for name in cached:
        ask(name)
    cpu = [timed(ask, name) for name in rounds_of(cached, repeats)]
    disk = [timed(ask, name) for name in rounds_of([*others, *cached], repeats)]
    return {"slot": slot, "cpu": cpu, "disk": disk, "first": first}


def answers_per_second(ask: Callable[[str], None], names: Sequence[str], concurrency: int, rounds: int) -> float:
    """Answers/s with so many requests at a time, of which neighbours are under different adapters."""
    work = list(itertools.islice(itertools.cycle(names), max(8, rounds * concurrency)))
    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(ask, [*names, *work[:concurrency]]))  # into the slots
        seconds = timed(lambda: list(pool.map(ask, work)))
    return round(len(work) / seconds, 3)


def rounds_of(names: Sequence[str], at_least: int) -> list[str]:
    """The names in order, again and again, in whole rounds."""
    return [name for _ in range(-(-at_least // len(names))) for name in names]


def timed(call: Callable[..., Any], *arguments: Any) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and 95th percentile, in seconds."""
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"median": round(statistics.median(ordered), 5), "p95": round(p95, 5), "repeats": len(ordered)}
