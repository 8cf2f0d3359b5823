"""Simulates vLLM processes and contextualising workers that serve a million memories, from measured rates and sizes.

    python benchmarks/serving_simulation.py [--processes 4] [--routing hash] [--disk-gb 20] [--json FILE]
    python benchmarks/serving_simulation.py --set vllm.latency_seconds.disk.median=0.03 --set adapter_rank=32

The inputs are those of `engine_rates.py` (`--rates`); `--set` puts other numbers in their place, for other hardware
(`--set adapter_rank=R` changes the bytes of adapters, no latency). Events in time are SimPy's; the same seed gives the
same report. Printed are where requests found their adapter, their latency, how busy everything is, and sizes.

What is measured: the latency of each place where an adapter can be, the rate of a batch by its requests and adapters,
the time that a document takes, bytes. What is assumed instead:

- Requests and documents come at random (Poisson). The k-th most popular memory is asked for in proportion to
  k^-exponent, popularity doesn't change, and updates go to memories as requests do. New memories aren't asked for.
- All answers have the tokens that the measured ones had, all documents have `--document-tokens`. Seconds of a document
  are linear between the measured lengths, and in proportion to its tokens beyond them.
- A batch's rate is linear between the measured numbers of requests and adapters, and constant beyond the largest, and
  its requests share it evenly. A request waits while the batch is full or would need more adapters than slots.
- Loading an adapter (latency from disk less that in a slot) and bringing it into a slot stop the whole batch for so
  long. Making one (first use less from disk) doesn't, and a process makes one at a time.
- Each process has a machine, and a disk, of its own; medians stand for all latencies of a kind.
- Unloading, trimming, routing and the network take no time, and nothing fails. `--store-seconds` adds to each fetch
  from the store.
- Before the clock starts, `--warm-up` requests fill names, caches and disks, and trimming keeps the disks in their
  bounds at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from serving.engine import PLACES, Costs, Limits, rate_table
from serving.run import Scenario, Simulation

ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    rates = read_rates(options.rates, options.set)
    costs, one = costs_of(rates, options.store_seconds), document_seconds(rates, options.document_tokens)
    limits = Limits(
        max_loras=options.max_loras,
        max_cpu_loras=options.max_cpu_loras,
        max_num_seqs=options.max_num_seqs,
        disk_bytes=options.disk_gb * 1e9,
        trim_every_seconds=options.trim_every,
        grace_seconds=options.grace_seconds,
    )
    apart = min(limits.max_loras, limits.max_num_seqs)  # requests in a batch that all have another adapter
    rate = rate_table(costs.answers_per_second, apart, apart)[apart][apart]
    scenario = Scenario(
        requests=options.requests,
        request_rate=options.request_rate or 0.5 * rate * options.processes,
        memories=options.memories,
        exponent=options.exponent,
        processes=options.processes,
        routing=options.routing,
        workers=options.workers,
        document_rate=0.5 * options.workers / one if options.document_rate is None else options.document_rate,
        document_seconds=one,
        update_share=options.update_share,
        warm_up=options.warm_up,
        seed=options.seed,
        limits=limits,
    )
    report = Simulation(scenario, costs, told if sys.stderr.isatty() else None).run()
    memory_bytes = int(rates["memory_bytes"][options.memory_form])
    report["store_gb"] = report["memories"] * memory_bytes / 1e9
    result = {"scenario": asdict(scenario), "costs": asdict(costs), "memory_bytes": memory_bytes, **report}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(name: str, kind: type, default: Any, told: str, low: float = 0.0, above: bool = False) -> None:
        def checked(text: str) -> Any:
            value = kind(text)
            if not low <= value < float("inf") or (above and value == low):
                raise argparse.ArgumentTypeError(f"{text} is not {'above' if above else 'at least'} {low:g}")
            return value

        checked.__name__ = kind.__name__
        parser.add_argument(name, type=checked, default=default, help=f"{told} [{default}]" if default else told)

    parser.add_argument("--rates", type=Path, default=ROOT / "benchmarks" / "engine_rates.json")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=NUMBER", help="another number; repeatable")
    add("--memories", int, 1_000_000, "memories in the store", 1)
    add("--exponent", float, 1.0, "of popularity; 0: all are equally popular")
    add("--requests", int, 100_000, "requests to simulate", 1)
    half = "half of what batches give whose requests have an adapter each"
    add("--request-rate", float, None, f"requests/s in all; default: {half}", above=True)
    add("--processes", int, 4, "vLLM processes", 1)
    parser.add_argument(
        "--routing", choices=("hash", "random"), default="hash", help="by the memory's id, or at random"
    )
    add("--max-loras", int, 8, "slots", 1)
    add("--max-cpu-loras", int, 64, "adapters in vLLM's cache, those in slots among them", 1)
    add("--max-num-seqs", int, 32, "requests in a batch", 1)
    add("--disk-gb", float, 20.0, "GB of adapters that trimming leaves on each machine")
    add("--trim-every", float, 60.0, "seconds between trimmings", above=True)
    add("--grace-seconds", float, 60.0, "seconds between unloading and deleting")
    add("--workers", int, 1, "contextualising workers", 1)
    add("--document-rate", float, None, "documents/s; default: half of what the workers can read")
    add("--document-tokens", int, 512, "tokens of a document", 1)
    add("--update-share", float, 0.5, "share of documents that change a memory, instead of making a new one")
    add("--store-seconds", float, 0.0, "added to each fetch from the store")
    parser.add_argument("--memory-form", choices=("float64", "bfloat16", "int8"), default="bfloat16")
    add("--warm-up", int, None, "requests before the clock starts; default: ten times what the disks hold")
    add("--seed", int, 0, "decides all that is random")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the report")
    options = parser.parse_args(arguments)
    if options.max_cpu_loras < options.max_loras:
        parser.error(f"--max-cpu-loras {options.max_cpu_loras} has to be at least --max-loras {options.max_loras}")
    return options


def costs_of(rates: Mapping[str, Any], store_seconds: float = 0.0) -> Costs:
    """The numbers of `engine_rates.py` as the simulation uses them."""
    slot, cpu, disk, first = (float(rates["vllm"]["latency_seconds"][place]["median"]) for place in PLACES)
    answers = rates["vllm"]["answers_per_second"]
    return Costs(
        activate_seconds=max(0.0, cpu - slot),
        load_seconds=max(0.0, disk - slot),
        make_seconds=max(0.0, first - disk) + store_seconds,
        answers_per_second={int(a): {int(n): float(rate) for n, rate in row.items()} for a, row in answers.items()},
        adapter_bytes=int(rates["adapter_bytes"][str(int(rates["adapter_rank"]))]),
    )


def document_seconds(rates: Mapping[str, Any], tokens: float) -> float:
    """How long contextualising a document of so many tokens takes."""
    measured = sorted((row["tokens"], row["seconds"]) for row in rates["contextualise"]["documents"])
    nearest = min(measured[-1][0], max(measured[0][0], tokens))
    lengths, seconds = ([row[column] for row in measured] for column in (0, 1))
    return float(np.interp(nearest, lengths, seconds)) * tokens / nearest


def read_rates(path: Path, changes: Sequence[str]) -> dict[str, Any]:
    """The measured numbers, with those of `--set PATH=NUMBER` in their place; ends the program where one is wrong."""
    if not path.is_file():
        raise SystemExit(f"error: {path}: nothing is measured; run `python benchmarks/engine_rates.py` first")
    rates = json.loads(path.read_text())
    for change in changes:
        name, _, number = change.partition("=")
        *parents, last = name.split(".")
        inner: Any = rates
        for parent in parents:
            inner = inner.get(parent) if isinstance(inner, dict) else inner[int(parent)] if parent.isdigit() else None
        if not isinstance(inner, dict) or not isinstance(inner.get(last), int | float):
            raise SystemExit(f"error: --set {change}: {path} holds no number {name!r}")
        try:
            inner[last] = float(number)
        except ValueError:
            raise SystemExit(f"error: --set {change}: {number!r} is no number") from None
    return rates


def told(answered: int, total: int) -> None:
    end = "\n" if answered == total else ""
    print(f"\r{answered:,} of {total:,} requests", end=end, file=sys.stderr, flush=True)


def show(result: Mapping[str, Any]) -> None:
    """Prints a report as tables."""
    scenario, vllm, reading, disk = (result[name] for name in ("scenario", "vllm", "contextualising", "disk"))
    console = Console()
    title = (
        f"{scenario['memories']:,} memories, exponent {scenario['exponent']:g}; {scenario['processes']} processes, "
        f"routing {scenario['routing']}; {scenario['request_rate']:.3g} requests/s"
    )
    table = Table("adapter found", "share", "p50 s", "p95 s", "p99 s", title=title)
    rows = {place: result["latency_seconds_by_place"][place] for place in PLACES} | {"all": result["latency_seconds"]}
    for place, seconds in rows.items():
        share = f"{result['found'].get(place, 1.0):.2%}"
        table.add_row(place, share, *(f"{seconds[each]:.3f}" if seconds else "" for each in ("p50", "p95", "p99")))
    console.print(table)
    table = Table("", "", show_header=False)
    wait = reading["wait_seconds"]
    for name, value in {
        "vLLM: answers/s of all": f"{vllm['answers_per_second']:.2f} for {result['simulated_seconds']:,.0f} s",
        "vLLM: busy, mean and busiest": f"{vllm['utilisation']:.1%}, {vllm['busiest_utilisation']:.1%}",
        "vLLM: of all time loading adapters": f"{vllm['loading_share']:.1%}",
        "vLLM: requests in a process": f"{vllm['requests_in_flight']:.2f}",
        "vLLM: names known to one": f"{vllm['names']:,}",
        "disk: mean and largest": f"{disk['mean_gb']:.2f} GB, {disk['largest_gb']:.2f} GB",
        "disk: adapters trimmed": f"{disk['trimmed']:,}, {disk['asked_for_while_trimming']:,} more asked for meanwhile",
        "workers: busy": f"{reading['utilisation']:.1%}, {reading['documents']:,} documents",
        "workers: a document waits, p95": f"{wait['p95']:.2f} s" if wait else "no document",
        "store": f"{result['memories']:,} memories, {result['store_gb']:,.0f} GB",
    }.items():
        table.add_row(name, value)
    console.print(table)
    if result["latency_growth"] > 1.5:
        console.print("Latencies grew until the end: more requests come than are answered, so they say nothing.")
    if reading["waiting"] > 10 + 0.1 * reading["documents"]:
        console.print("Documents were left waiting: more come than are read, so their wait says nothing.")


if __name__ == "__main__":
    main()
