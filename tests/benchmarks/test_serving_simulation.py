"""The simulation of serving against closed forms: queues, caches of equally popular memories, and what has to order."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import serving_simulation
from serving.engine import Costs, Limits, rate_table
from serving.run import Scenario, Simulation
from serving_simulation import costs_of, document_seconds, read_rates
from vllm_rates import latencies_by_place

ONE_AT_A_TIME = {1: {1: 2.0}}  # answers/s, whatever is in the batch
COSTS = Costs(0.0, 0.0, 0.0, ONE_AT_A_TIME, adapter_bytes=1000)
ROOMY = Limits(max_loras=50, max_cpu_loras=50, max_num_seqs=50, disk_bytes=1e9)


def simulate(costs: Costs = COSTS, **settings: Any) -> dict[str, Any]:
    chosen = {"requests": 4000, "request_rate": 1.0, "memories": 20, "processes": 1, "limits": ROOMY, "seed": 3}
    return Simulation(Scenario(**(chosen | settings)), costs).run()


def test_a_light_load_keeps_vllm_busy_for_rate_times_service_time():
    report = simulate(request_rate=0.02)
    assert report["vllm"]["utilisation"] == pytest.approx(0.02 * 0.5, rel=0.05)
    assert report["latency_seconds"]["p50"] == pytest.approx(0.5)
    assert report["vllm"]["requests_in_flight"] == pytest.approx(0.02 * report["latency_seconds"]["mean"], rel=0.05)


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_a_shared_rate_is_that_of_processor_sharing(load):
    """Of equal requests that share one rate: mean latency s / (1 - load), and rate times that of them at a time."""
    report = simulate(request_rate=2 * load, requests=30_000)
    assert report["latency_seconds"]["mean"] == pytest.approx(0.5 / (1 - load), rel=0.06)
    assert report["vllm"]["requests_in_flight"] == pytest.approx(load / (1 - load), rel=0.06)
    assert report["vllm"]["utilisation"] == pytest.approx(load, rel=0.04)


def test_documents_wait_as_in_a_queue_of_fixed_service():
    """M/D/1: mean wait = load x service / (2 (1 - load))."""
    report = simulate(request_rate=0.05, document_rate=0.6, document_seconds=1.0, requests=3000)
    reading = report["contextualising"]
    assert reading["documents"] > 20_000
    assert reading["wait_seconds"]["mean"] == pytest.approx(0.6 / (2 * 0.4), rel=0.08)
    assert reading["utilisation"] == pytest.approx(0.6, rel=0.03)
    assert simulate(document_rate=0.6, document_seconds=1.0, workers=3)["contextualising"]["utilisation"] < 0.25


def test_new_memories_are_counted():
    report = simulate(document_rate=2.0, document_seconds=0.1, update_share=0.25)
    assert report["memories"] - 20 == pytest.approx(0.75 * report["contextualising"]["documents"], rel=0.05)
    assert simulate(document_rate=2.0, document_seconds=0.1, update_share=1.0)["memories"] == 20


@pytest.mark.parametrize("routing", ["hash", "random"])
def test_caches_of_equally_popular_memories_hold_their_share(routing):
    """Of 1000 memories 50 are in slots, 150 more in the cache, 300 more on disk; with hash routing each has half."""
    limits = Limits(max_loras=50, max_cpu_loras=200, max_num_seqs=50, disk_bytes=500e3, grace_seconds=0.0)
    report = simulate(
        memories=1000,
        exponent=0.0,
        processes=2,
        routing=routing,
        requests=20_000,
        request_rate=1.0,
        limits=replace(limits, trim_every_seconds=1.0),
    )
    times = 2 if routing == "hash" else 1
    found = report["found"]
    assert found["slot"] == pytest.approx(0.05 * times, rel=0.1)
    assert found["cpu"] == pytest.approx(0.15 * times, rel=0.1)
    assert found["disk"] == pytest.approx(0.30 * times, rel=0.05)
    assert found["first"] == pytest.approx(1 - 0.5 * times, rel=0.05, abs=0.02)
    assert sum(found.values()) == pytest.approx(1.0)
    assert report["disk"]["largest_gb"] == pytest.approx(500e-6, rel=0.02)


def test_hash_routing_finds_more_than_random():
    limits = Limits(max_loras=4, max_cpu_loras=16, disk_bytes=200e3)
    found = {
        routing: simulate(memories=10_000, processes=4, routing=routing, limits=limits)["found"]
        for routing in ("hash", "random")
    }
    assert found["hash"]["slot"] > found["random"]["slot"] + 0.05
    assert found["hash"]["first"] < found["random"]["first"] - 0.05


def test_popular_memories_are_found_more_often():
    limits = Limits(max_loras=4, max_cpu_loras=16, disk_bytes=200e3)
    slots = [simulate(memories=10_000, exponent=exponent, limits=limits)["found"]["slot"] for exponent in (0, 0.8, 1.2)]
    assert slots[0] < 0.01 and slots[0] < slots[1] < slots[2] and slots[2] > 0.15


@pytest.mark.parametrize(
    ("place", "limits", "seconds"),
    [
        ("slot", ROOMY, 0.5),
        ("cpu", Limits(max_loras=1, max_cpu_loras=60, disk_bytes=1e9), 0.5 + 0.03),
        ("disk", Limits(max_loras=1, max_cpu_loras=1, disk_bytes=1e9), 0.5 + 0.2),
        ("first", Limits(max_loras=1, max_cpu_loras=1, disk_bytes=0, trim_every_seconds=0.1, grace_seconds=0), 1.7),
    ],
)
def test_each_place_costs_what_was_measured(place, limits, seconds):
    costs = replace(COSTS, activate_seconds=0.03, load_seconds=0.2, make_seconds=1.0)
    report = simulate(costs, memories=50, exponent=0.0, request_rate=0.01, limits=limits, warm_up=5000, requests=1000)
    assert report["found"][place] > 0.9
    assert report["latency_seconds_by_place"][place]["p50"] == pytest.approx(seconds, rel=1e-6)
    spent = {"slot": 0.0, "cpu": 0.03, "disk": 0.2, "first": 0.2}[place] * report["found"][place] * 0.01
    assert report["vllm"]["loading_share"] == pytest.approx(spent, rel=0.15, abs=1e-5)


def test_a_memory_that_changed_is_made_anew():
    """One memory, asked for all the time: every change costs one making, and trimming clears what it was before."""
    limits = replace(ROOMY, disk_bytes=1000, trim_every_seconds=5.0, grace_seconds=1.0)
    report = simulate(
        replace(COSTS, answers_per_second={1: {1: 1000.0}}),
        memories=1,
        request_rate=10.0,
        requests=20_000,
        document_rate=0.1,
        document_seconds=0.01,
        update_share=1.0,
        limits=limits,
    )
    changes = report["contextualising"]["documents"]
    made = report["found"]["first"] * 20_000
    assert changes > 150 and made == pytest.approx(changes, abs=0.05 * changes)
    assert report["disk"]["trimmed"] == pytest.approx(changes, abs=3)
    assert report["disk"]["largest_gb"] <= 3000 / 1e9


def test_trimming_bounds_the_disk_and_spares_what_is_in_use():
    limits = Limits(max_loras=2, max_cpu_loras=4, disk_bytes=100e3, trim_every_seconds=20.0, grace_seconds=10.0)
    report = simulate(memories=5000, limits=limits, requests=8000)
    assert 100e-6 <= report["disk"]["largest_gb"] < 100e-6 + 40 * 1.2 * 1000 / 1e9
    assert report["disk"]["trimmed"] > 500 and report["disk"]["asked_for_while_trimming"] > 10
    assert report["vllm"]["names"] <= report["disk"]["largest_gb"] * 1e6


def test_more_adapters_than_slots_wait_for_each_other():
    costs = replace(COSTS, answers_per_second={1: {1: 1.0, 8: 8.0}})
    scenario = {"memories": 1000, "exponent": 0.0, "request_rate": 2.0, "warm_up": 0}
    few, many = (
        simulate(costs, limits=replace(ROOMY, max_loras=slots, max_num_seqs=8), **scenario) for slots in (1, 8)
    )
    assert many["latency_seconds"]["p50"] < 1.5 and few["latency_seconds"]["p50"] > 100
    one = simulate(costs, **(scenario | {"memories": 1}), limits=replace(ROOMY, max_loras=1, max_num_seqs=8))
    assert one["latency_seconds"]["p50"] < 1.5


def test_more_requests_than_answers_are_told_by_growing_latencies():
    assert simulate(request_rate=4.0)["latency_growth"] > 2
    assert 0.7 < simulate(request_rate=1.0)["latency_growth"] < 1.4


def test_the_seed_decides():
    limits = Limits(max_loras=4, max_cpu_loras=16, disk_bytes=50e3)
    first, again, other = (simulate(memories=500, limits=limits, document_rate=0.2, seed=seed) for seed in (5, 5, 6))
    assert first == again != other


def test_rates_are_linear_between_the_measured_ones_and_constant_beyond():
    table = rate_table({1: {1: 1.0, 5: 9.0}, 3: {1: 1.0, 5: 5.0}}, max_requests=7, max_adapters=4)
    assert table[3][1:] == pytest.approx([5.0, 4.0, 3.0])
    assert table[7][1:] == pytest.approx([9.0, 7.0, 5.0, 5.0])


MEASURED = {
    "adapter_rank": 128,
    "adapter_bytes": {"32": 2_000_000, "128": 8_000_000},
    "memory_bytes": {"float64": 4_000_000, "bfloat16": 1_000_000, "int8": 500_000},
    "contextualise": {"documents": [{"tokens": 100, "seconds": 1.0}, {"tokens": 300, "seconds": 2.0}]},
    "vllm": {
        "latency_seconds": {
            "slot": {"median": 1.0},
            "cpu": {"median": 1.1},
            "disk": {"median": 1.5},
            "first": {"median": 2.5},
        },
        "answers_per_second": {"1": {"1": 1.0, "8": 6.0, "32": 9.0}, "8": {"1": 1.0, "8": 5.0, "32": 8.0}},
    },
}


def test_measured_numbers_become_costs():
    costs = costs_of(MEASURED, store_seconds=0.5)
    assert (costs.activate_seconds, costs.load_seconds) == (pytest.approx(0.1), pytest.approx(0.5))
    assert (costs.make_seconds, costs.adapter_bytes) == (pytest.approx(1.5), 8_000_000)
    assert costs.answers_per_second[8][32] == 8.0
    assert [document_seconds(MEASURED, tokens) for tokens in (50, 100, 200, 600)] == pytest.approx([0.5, 1.0, 1.5, 4.0])


def test_the_command_reports_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "rates.json").write_text(json.dumps(MEASURED))
    arguments = [
        "--rates",
        tmp_path / "rates.json",
        "--requests",
        500,
        "--memories",
        5000,
        "--json",
        tmp_path / "r.json",
    ]
    serving_simulation.main([*map(str, arguments), "--set", "adapter_rank=32", "--set", "memory_bytes.bfloat16=3e6"])
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["costs"]["adapter_bytes"] == 2_000_000 and report["memories"] >= 5000
    assert report["store_gb"] == pytest.approx(report["memories"] * 3e6 / 1e9)
    assert report["scenario"]["request_rate"] == pytest.approx(0.5 * 5.0 * 4)
    told = capsys.readouterr().out
    assert f"{report['found']['first']:.2%}" in told and "5,000 memories" in told


@pytest.mark.parametrize("change", ["vllm.nothing=1", "adapter_rank=many", "adapter_rank", "a.b.c=2", "vllm=1"])
def test_a_change_of_what_is_not_there_is_told(tmp_path: Path, change: str):
    (tmp_path / "rates.json").write_text(json.dumps(MEASURED))
    with pytest.raises(SystemExit, match="--set"):
        read_rates(tmp_path / "rates.json", [change])
    with pytest.raises(SystemExit, match=r"engine_rates\.py"):
        read_rates(tmp_path / "none.json", [])


def test_the_measured_sequences_find_adapters_where_they_say():
    """Through caches that drop what was least recently used, as vLLM's do."""
    slots: OrderedDict[str, None] = OrderedDict()
    cache: OrderedDict[str, None] = OrderedDict()
    made: set[str] = set()
    found: list[str] = []

    def ask(name: str) -> None:
        place = "slot" if name in slots else "cpu" if name in cache else "disk" if name in made else "first"
        found.append(place)
        made.add(name)
        for kept, size in ((cache, 16), (slots, 8)):
            kept[name] = None
            kept.move_to_end(name)
            if len(kept) > size:
                kept.popitem(last=False)

    latencies = latencies_by_place(ask, [f"m{number}" for number in range(24)], 16, 20)
    assert {place: len(each) for place, each in latencies.items()} == {"slot": 20, "cpu": 32, "disk": 24, "first": 24}
    unmeasured = found[44:60]
    assert found[:24] == ["first"] * 24 and found[24:44] == ["slot"] * 20 and unmeasured == ["disk"] * 16
    assert found[60:92] == ["cpu"] * 32 and found[92:] == ["disk"] * 24
