"""Means over hand-made lines: by hand, paired, over draws, over tasks, and whatever the order of the lines."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from generative_adapter.errors import ConfigError, DataError
from generative_adapter.evaluation.metrics import bootstrap_mean
from generative_adapter.evaluation.results import SAMPLES_FILE
from generative_adapter.evaluation.run_folder import read_folder
from generative_adapter.evaluation.summary import Row, Summary, summarize
from result_lines import COSTS, every_kind, query, sample, write_folder

SQUAD = "document-qa/squad/512"
AT_512 = {"context_tokens": 512, "num_tokens": 500}


def summary_of(folder: Path, reference: str | None = None) -> Summary:
    return summarize([read_folder(folder)], reference)


def row_of(summary: Summary, task: str, method: str) -> Row:
    (row,) = [row for row in summary.rows if (row.task, row.method) == (task, method)]
    return row


def test_means_costs_and_times_by_hand(tmp_path: Path) -> None:
    first = sample(SQUAD, "full-context", "a", [1.0, 0.5, 0.0], AT_512)
    second = sample(
        SQUAD, "full-context", "b", [1.0], AT_512, wording="other",
        costs={**COSTS, "answering_flops": 9e11, "contextualizing_flops": 4e12},
        measured={"contextualizing_seconds": 5.0, "answering_seconds": 3.0, "peak_memory_bytes": 3e9},
    )  # fmt: skip
    second = replace(second, queries=(replace(second.queries[0], seconds=3.0),))
    row = row_of(summary_of(write_folder(tmp_path, [first, second])), SQUAD, "full-context")
    assert row.split == {"context_tokens": 512}
    assert (row.num_queries, row.num_contexts, row.num_samples) == (4, 2, 2)
    assert row.wordings == ("figure 7", "other")
    assert row.values["f1"] == bootstrap_mean([1.0, 0.5, 0.0, 1.0], ["a", "a", "a", "b"])
    assert row.values["f1"].mean == 0.625
    assert row.costs["contextualizing_flops"] == 3e12
    assert row.costs["answering_flops"] == pytest.approx((3 * 5e11 + 9e11) / 4)
    assert row.costs["training_flops"] == 3e15
    assert row.measured == {
        "contextualizing_seconds_mean": 3.5,
        "contextualizing_seconds_median": 3.5,
        "answering_seconds_mean": pytest.approx((3 * 0.5 + 3.0) / 4),
        "answering_seconds_median": 0.5,
        "peak_memory_bytes": 3e9,
    }
    assert (row.reference, row.differences, row.draws) == (None, {}, {})


def test_differences_are_of_the_same_questions(tmp_path: Path) -> None:
    lines = [
        sample(SQUAD, "generative-adapter", "a", [0.0, 0.5], AT_512),
        sample(SQUAD, "generative-adapter", "b", [1.0], AT_512),
        sample(SQUAD, "generative-adapter", "only here", [1.0], AT_512),
        sample(SQUAD, "full-context", "a", [1.0, 0.5, 0.0], AT_512),  # its third question has no partner
        sample(SQUAD, "full-context", "b", [0.25], AT_512),
    ]
    row = row_of(summary_of(write_folder(tmp_path, lines)), SQUAD, "generative-adapter")
    assert row.reference == "full-context"
    assert row.differences["f1"] == bootstrap_mean([-1.0, 0.0, 0.75], ["a", "a", "b"])


def test_the_reference_is_what_is_named_or_there(tmp_path: Path) -> None:
    lines = [sample(SQUAD, method, "a", [value], AT_512) for method, value in (("closed-book", 0.5), ("sft-lora", 1.0))]
    folder = write_folder(tmp_path, lines)
    assert row_of(summary_of(folder), SQUAD, "sft-lora").reference == "closed-book"
    named = row_of(summary_of(folder, "sft-lora"), SQUAD, "closed-book")
    assert (named.reference, named.differences["f1"].mean) == ("sft-lora", -0.5)
    with pytest.raises(ConfigError, match=r"'cmt'.*closed-book"):
        summary_of(folder, "cmt")


def test_one_method_alone_has_no_difference(tmp_path: Path) -> None:
    row = row_of(summary_of(write_folder(tmp_path, [sample(SQUAD, "cmt", "a", [0.5, 1.0], AT_512)])), SQUAD, "cmt")
    assert (row.reference, row.differences) == (None, {})
    assert (row.values["f1"].low, row.values["f1"].num_clusters) == (None, 1)


def metaicl(
    task: str, method: str, draw: int, values: list[float], classification: bool = True, shots: int = 4
) -> object:
    metadata = {"task": task, "classification": classification, "shots": shots, "draw": draw}
    return sample(f"metaicl/{task}", method, f"{shots}-{draw}", values, metadata)


def test_draws_and_averages_over_tasks(tmp_path: Path) -> None:
    lines = [
        metaicl("sick", "full-context", 13, [1.0, 0.0]),  # draw means 0.5, 1.0, 0.0
        metaicl("sick", "full-context", 21, [1.0, 1.0]),
        metaicl("sick", "full-context", 42, [0.0, 0.0]),
        metaicl("poem", "full-context", 13, [1.0, 1.0, 1.0, 1.0]),  # 1.0, 0.5
        metaicl("poem", "full-context", 21, [1.0, 1.0, 0.0, 0.0]),
        metaicl("codah", "full-context", 13, [0.0], classification=False),
        metaicl("dream", "full-context", 13, [1.0], classification=False),
        metaicl("codah", "closed-book", 13, [1.0], classification=False),
    ]
    summary = summary_of(write_folder(tmp_path, lines))
    spread = row_of(summary, "metaicl/sick", "full-context").draws["accuracy"]
    assert (spread.mean, spread.standard_deviation) == (0.5, 0.5)
    assert spread.by_draw == {"13": 0.5, "21": 1.0, "42": 0.0}
    averages = {(average.group, average.method): average for average in summary.averages}
    assert set(averages) == {
        ("classification", "full-context"), ("other", "full-context"), ("other", "closed-book"),
        ("all", "full-context"), ("all", "closed-book"),
    }  # fmt: skip
    both = averages["classification", "full-context"]
    assert (both.tasks, both.shots, both.num_left_out) == (("metaicl/sick", "metaicl/poem"), 4, 0)
    assert both.mean == (0.5 + 0.75) / 2
    assert both.draws is not None
    assert both.draws.by_draw == {"13": 0.75, "21": 0.75}
    assert both.draws.standard_deviation == 0.0
    other = averages["other", "full-context"]  # dream has no closed-book answers
    assert (other.tasks, other.mean, other.num_left_out) == (("metaicl/codah",), 0.0, 1)
    assert other.draws is not None and other.draws.standard_deviation is None
    assert averages["all", "full-context"].tasks == ("metaicl/codah",)


def test_spread_of_an_average_is_that_of_the_draws_averages(tmp_path: Path) -> None:
    values = {13: (0.25, 0.75), 21: (1.0, 0.5), 42: (0.5, 0.5)}
    lines = [
        metaicl(task, "full-context", draw, [pair[place]])
        for draw, pair in values.items()
        for place, task in enumerate(("sick", "poem"))
    ]
    average = summary_of(write_folder(tmp_path, lines)).averages[0]
    assert average.draws is not None
    assert average.draws.standard_deviation == pytest.approx(statistics.stdev([0.5, 0.75, 0.5]))


def test_categories(tmp_path: Path) -> None:
    line = sample("personalisation/locomo", "closed-book", "a", [], {})
    queries = (
        query("1", {"f1": 1.0}, metadata={"category": "temporal"}),
        query("2", {"f1": 0.5}, metadata={"category": "temporal"}),
        query("3", {"f1": 0.25}, metadata={"category": "multi-hop"}),
        query("4", {"f1": 0.0}),
    )
    categories = summary_of(write_folder(tmp_path, [replace(line, queries=queries)])).categories
    assert [(item.category, item.num_queries, item.values["f1"].mean) for item in categories] == [
        ("multi-hop", 1, 0.25),
        ("temporal", 2, 0.75),
    ]


def test_splits_are_rows_of_their_own_in_order_of_numbers(tmp_path: Path) -> None:
    lines = [
        sample("needle", "full-context", f"{tokens} {depth}", [depth], {"context_tokens": tokens, "depth": depth})
        for tokens in (1024, 512)
        for depth in (1.0, 0.5)
    ]
    rows = summary_of(write_folder(tmp_path, lines)).rows
    assert [tuple(row.split.values()) for row in rows] == [(512, 0.5), (512, 1.0), (1024, 0.5), (1024, 1.0)]
    assert [row.values["f1"].mean for row in rows] == [0.5, 1.0, 0.5, 1.0]


def test_the_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    lines = [line for line in every_kind() if line.method == "full-context"]
    forwards = summary_of(write_folder(tmp_path / "a", lines)).to_dict()
    backwards = summary_of(write_folder(tmp_path / "b", lines[::-1])).to_dict()

    def sorted_rows(values: dict) -> list:
        return sorted(values["rows"], key=lambda row: (row["task"], str(row["split"])))

    assert json.dumps(sorted_rows(forwards)) == json.dumps(sorted_rows(backwards))


def test_only_lines_of_the_run_count(tmp_path: Path) -> None:
    old = sample(SQUAD, "sft-lora", "a", [0.0], AT_512, key="old")
    new = sample(SQUAD, "sft-lora", "a", [1.0], AT_512, key="new")
    choice = sample(SQUAD, "sft-lora", "b", [0.25], AT_512, key="choice", role="choice")
    run = {"keys": ["old", "not yet"], "seed": 7}
    folder = read_folder(write_folder(tmp_path / "keys", [old, new, choice], run))
    assert [line.key for line in folder.results] == ["old"]
    assert (folder.num_missing, folder.settings) == (1, {"seed": 7})
    without_keys = read_folder(write_folder(tmp_path / "none", [old, new, choice]))
    assert [line.key for line in without_keys.results] == ["new"]


def test_merging_folders(tmp_path: Path) -> None:
    shared = sample(SQUAD, "closed-book", "a", [0.5], AT_512)
    one = read_folder(write_folder(tmp_path / "one", [shared]))
    two = read_folder(write_folder(tmp_path / "two", [shared, sample(SQUAD, "sft-lora", "a", [1.0], AT_512)]))
    summary = summarize([one, two])
    assert [(row.method, row.num_queries) for row in summary.rows] == [("closed-book", 1), ("sft-lora", 1)]
    assert [run["folder"] for run in summary.to_dict()["runs"]] == ["one", "two"]
    other = read_folder(write_folder(tmp_path / "three", [replace(shared, key="other settings")]))
    with pytest.raises(DataError, match="one and three both have sample"):
        summarize([one, other])


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no samples\.jsonl"):
        read_folder(tmp_path)
    with pytest.raises(DataError, match="no sample was answered"):
        summary_of(write_folder(tmp_path / "empty", []))
    broken = write_folder(tmp_path / "broken", [sample(SQUAD, "sft-lora", "a", [1.0], AT_512)])
    with (broken / SAMPLES_FILE).open("a") as file:
        file.write("{broken\n")
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        read_folder(broken)
    (broken / SAMPLES_FILE).write_bytes(b'"\xff"\n')
    with pytest.raises(DataError, match="line 1: not valid JSON"):
        read_folder(broken)
    run = write_folder(tmp_path / "run", [sample(SQUAD, "sft-lora", "a", [1.0], AT_512)])
    for text, told in (("[1]", "a list; expected a JSON object"), ("{", "not valid JSON")):
        (run / "run.json").write_text(text)
        with pytest.raises(DataError, match=told):
            read_folder(run)


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    lines = [sample(SQUAD, "sft-lora", name, [1.0], AT_512, wording="für alle") for name in "ab"]
    folder = write_folder(tmp_path, lines)
    path = folder / SAMPLES_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert len(read_folder(folder).results) == 1
    assert path.read_bytes() == whole[:-40]  # the run itself may still be writing


def test_intervals_resample_what_samples_share(tmp_path: Path) -> None:
    lines = [
        sample("needle/x", "full-context", name, [value], {**AT_512, "cluster": cluster})
        for name, value, cluster in (("a", 1.0, "seed 0"), ("b", 1.0, "seed 0"), ("c", 0.0, "seed 1"))
    ]
    row = row_of(summary_of(write_folder(tmp_path, lines)), "needle/x", "full-context")
    assert row.values["f1"] == bootstrap_mean([1.0, 1.0, 0.0], ["0", "0", "1"])
    assert (row.values["f1"].num_clusters, row.num_contexts) == (2, 3)
