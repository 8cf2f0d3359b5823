"""Rates and sizes of the parts that serve memories, measured: what `serving_simulation.py` starts from.

    python benchmarks/engine_rates.py [--quick] [--json benchmarks/engine_rates.json]
    python benchmarks/engine_rates.py --device cuda --vllm-python PYTHON --vllm-options "--dtype bfloat16"

Measures, with a generator and the real parts:

- contextualising documents of a few lengths, with the base model on `--device`;
- the bytes of a stored memory of 512 tokens in each form, and of its adapter's folder at each rank;
- fetching a memory out of a store (`--store`, else a folder of this machine) and making its adapter, by AdapterFolders;
- vLLM's OpenAI-compatible server with the plug-in: the latency of a request whose adapter is in a slot of the batch
  (`--max-loras`), in vLLM's cache beside it (`--max-cpu-loras`), on disk only, or made for this request; and answers a
  second of 1, 8 and 32 requests at a time under 1 and 8 adapters.

Every answer has the same number of tokens (`--answer-tokens`, ends are ignored); vLLM's prefix cache is off, so that a
repeated question costs what a new one costs. Requests come over HTTP from this machine. About 20 minutes on two cores;
`--quick` measures less. vLLM is that of `.venv-vllm`, which `make .venv-vllm/.setup-done` makes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from generative_adapter import ContextMemory, GenerativeAdapter, MemoryStore
from generative_adapter.base_model.prompts import plain_ids
from generative_adapter.config import MEMORY_DTYPES
from generative_adapter.data.records import read_records
from generative_adapter.evaluation.run_record import describe_run
from generative_adapter.export.adapter_folders import AdapterFolders
from generative_adapter.export.peft import RANKS, save_peft
from vllm_rates import MIN_LORAS, STORE_FORM, summary, timed, vllm_rates

ROOT = Path(__file__).parents[1]
TEXTS = ROOT / "benchmarks" / "handwritten_facts.jsonl"
SIZED_TOKENS = 512  # of the document whose memory and adapter are weighed


def main() -> None:
    options = parse()
    python = Path(options.vllm_python)
    if not python.is_file():
        raise SystemExit(
            f"error: there is no vLLM: {options.vllm_python} is missing; `make .venv-vllm/.setup-done` makes the "
            "environment (4 GB), or give the Python of another with --vllm-python"
        )
    if options.max_loras < MIN_LORAS or options.max_cpu_loras <= options.max_loras:
        raise SystemExit(f"error: --max-loras has to be {MIN_LORAS} at least, and --max-cpu-loras larger")
    model = GenerativeAdapter.from_pretrained(options.generator, device=options.device, dtype=options.dtype)
    texts = [record.context for record in read_records(TEXTS)]
    lengths, repeats, rounds = ((128, 512), 8, 2) if options.quick else ((128, 512, 2048), 24, 4)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        say("contextualising")
        documents = contextualising(model, texts, lengths, 1 if options.quick else 3)
        memories = [model.contextualize(text) for text in texts[:8]]
        sized = model.contextualize(document(model, texts, SIZED_TOKENS))
        say("stores and folders")
        result: dict[str, Any] = described(model) | {
            "contextualise": {
                "device": model.base.device.type,
                "dtype": str(model.base.dtype).removeprefix("torch."),
                "documents": documents,
            },
            "memory_bytes": {form: stored_bytes(sized, form, work) for form in MEMORY_DTYPES},
            **adapter_sizes(model, sized, work),
            "make_adapter_seconds": making(model, memories, options.store or str(work / "made-of"), work, repeats),
        }
        say("vLLM")
        result["vllm"] = vllm_rates(options, model, memories, work, repeats, rounds)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator")
    parser.add_argument("--device", default="auto", help="of contextualising")
    parser.add_argument("--dtype", default="auto", help="of contextualising: auto, float32 or bfloat16")
    parser.add_argument(
        "--store", help="folder or fsspec URL to measure fetching from; its memories bench-* are removed"
    )
    parser.add_argument("--vllm-python", default=os.environ.get("VLLM_PYTHON", str(ROOT / ".venv-vllm/bin/python")))
    parser.add_argument("--vllm-options", default="--dtype float32 --enforce-eager", help="more options of the server")
    parser.add_argument("--max-loras", type=int, default=8)
    parser.add_argument("--max-cpu-loras", type=int, default=16)
    parser.add_argument("--answer-tokens", type=int, default=16)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "engine_rates.json")
    return parser.parse_args()


def described(model: GenerativeAdapter) -> dict[str, Any]:
    """What was measured, on what, when and how."""
    run = describe_run([], model.base, [], {}, 0)
    return {
        "command": shlex.join(["python", "benchmarks/engine_rates.py", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": run["machine"]
        | {"processor": processor(), "processors": os.cpu_count(), "system": platform.system()},
        "packages": run["packages"] | {"safetensors": version("safetensors")},
        "generator_fingerprint": model.generator_fingerprint,
        "base_model": run["base_model"],
    }


def processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def contextualising(
    model: GenerativeAdapter, texts: Sequence[str], lengths: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """Median seconds and tokens/s of documents of about these many tokens."""
    model.contextualize(texts[0])
    rows = []
    for length in lengths:
        text = document(model, texts, length)
        seconds, memory = [], None
        for _ in range(repeats):
            started = time.perf_counter()
            memory = model.contextualize(text)
            if model.base.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        assert memory is not None
        middle = statistics.median(seconds)
        rows.append(
            {
                "tokens": memory.num_tokens,
                "seconds": round(middle, 4),
                "tokens_per_second": round(memory.num_tokens / middle, 1),
            }
        )
    return rows


def document(model: GenerativeAdapter, texts: Sequence[str], length: int) -> str:
    """The texts again and again, about so many tokens."""
    words = plain_ids(model.base.tokenizer, " ".join(texts))
    return str(model.base.tokenizer.decode((words * (1 + length // len(words)))[:length]))


def stored_bytes(memory: ContextMemory, form: str, work: Path) -> int:
    path = work / f"{form}.safetensors"
    memory.save(path, form)
    return path.stat().st_size


def adapter_sizes(model: GenerativeAdapter, memory: ContextMemory, work: Path) -> dict[str, Any]:
    """Bytes of a folder as `AdapterFolders` makes it at each rank, and the rank that loses nothing."""
    adapter, sizes = model.adapter(memory), {}
    for rank in RANKS:
        written = save_peft(adapter, work / f"rank-{rank}", model.base.name, rank=rank, one_rank=False)
        sizes[str(rank)] = sum(path.stat().st_size for path in written.folder.iterdir())
    return {"adapter_bytes": sizes, "adapter_rank": next(rank for rank in RANKS if rank >= adapter.rank)}


def making(
    model: GenerativeAdapter, memories: Sequence[ContextMemory], location: str, work: Path, repeats: int
) -> dict[str, Any]:
    """Seconds to fetch a memory and make its adapter, and to find one made before."""
    store = MemoryStore(location)
    folders = AdapterFolders(store, model.checkpoint, work / "made")
    names = [f"bench-{number:03d}" for number in range(repeats + 1)]
    for name, memory in zip(names, itertools.cycle(memories), strict=False):
        store.put(name, memory, STORE_FORM)
    try:
        folders.adapter(names[0])
        made = [timed(folders.adapter, name) for name in names[1:]]
        found = [timed(folders.adapter, name) for name in names[1:]]
    finally:
        for name in names:
            store.delete(name)
    where = "local" if "://" not in location else location.partition("://")[0]
    return {"store": where, "form": STORE_FORM, **summary(made), "found": summary(found)}


def say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
