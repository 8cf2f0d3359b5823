"""Which tables hand-made rows give, cell by cell where it counts, and the published numbers in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from generative_adapter.evaluation.metrics import Estimate
from generative_adapter.evaluation.report import formats, published
from generative_adapter.evaluation.report.layout import Table
from generative_adapter.evaluation.report.tables import all_tables
from generative_adapter.evaluation.run_folder import read_folder
from generative_adapter.evaluation.summary import summarize
from result_lines import every_kind, sample, write_folder


def tables_of(folder: Path, lines: list) -> dict[str, Table]:
    tables = all_tables(summarize([read_folder(write_folder(folder, lines))]))
    assert len({table.title for table in tables}) == len(tables)
    for table in tables:
        assert all(len(row) == len(table.columns) for block in table.blocks for row in block.rows), table.title
    return {table.title: table for table in tables}


def test_document_qa_stands_beside_the_published_rows(tmp_path: Path) -> None:
    lines = []
    for tokens in (2048, 512):
        metadata = {"context_tokens": tokens}
        task = f"document-qa/dev-v1/{tokens}"
        for name, values in (("a", [1.0, 0.5]), ("b", [1.0, 0.5])):
            lines.append(sample(task, "full-context", name, values, metadata))
            if tokens == 512:
                lines.append(sample(task, "closed-book", name, [0.25, 0.25], metadata))
    tables = tables_of(tmp_path, lines)
    table = tables["Document QA, dev-v1: F1, %"]
    assert table.columns == ("method", "512", "2K")
    own, theirs = table.blocks
    assert own.rows == (
        ("full-context", "75.0 [75.0, 75.0]", "75.0 [75.0, 75.0]"),
        ("closed-book", "25.0 [25.0, 25.0]", "–"),
    )
    assert "Mistral" in theirs.title and "not with this run's base model" in theirs.title
    assert ("in-context prompting", "45.4", "43.6") in theirs.rows
    assert ("Generative Adapter", "48.8", "39.9") in theirs.rows
    difference = tables["Document QA, dev-v1: F1 less that of full-context, points"]
    assert difference.blocks[0].rows == (("closed-book", "−50.0 [−50.0, −50.0]", "–"),)


def test_an_unknown_data_set_has_no_published_rows(tmp_path: Path) -> None:
    lines = [sample("document-qa/handbook/512", "sft-lora", "a", [1.0], {"context_tokens": 512})]
    assert len(tables_of(tmp_path, lines)["Document QA, handbook: F1, %"].blocks) == 1


def test_every_kind_has_its_tables(tmp_path: Path) -> None:
    tables = tables_of(tmp_path, every_kind())
    personal = tables["Personalisation, msc: answers and their costs"]
    assert personal.blocks[0].rows[1][0] == "full-context"
    assert personal.blocks[0].rows[1][2:4] == ("3", "32")
    assert ("Generative Adapter", "40.2", "0.505", "32", "–", "–") in personal.blocks[1].rows
    metaicl = tables["MetaICL: main metric, mean over tasks, %"]
    assert metaicl.columns == ("method", "K = 1", "K = 4", "K = 16")
    assert [block.title for block in metaicl.blocks] == ["classification tasks (2)", "other tasks (1)", "all tasks (3)"]
    assert any("44.9" in note for note in metaicl.notes)
    at_largest = tables["MetaICL: every task at K = 16, main metric, %"]
    assert [row[0] for block in at_largest.blocks for row in block.rows] == ["sick", "glue-rte", "codah"]
    needle = tables["Needle, passkey, full-context: F1, %"]
    assert needle.columns == ("depth", "512", "1K", "2K")
    assert needle.blocks[0].rows[2] == ("0.5", "52.5", "52.5", "52.5")
    controls = tables["Forgetting, dev-v1: F1 by control, %"]
    (row,) = [row for row in controls.blocks[0].rows if row[0] == "sft-lora"]
    assert row[controls.columns.index("unrelated question")] == "15.0"
    costs = tables["Costs: Document QA, dev-v1"]
    assert [block.title for block in costs.blocks] == ["512 tokens", "1K tokens", "2K tokens", "4K tokens"]
    assert costs.blocks[0].rows[1] == ("full-context", "3,000", "2", "3", "32", "64", "2", "0.5", "0.5", "1")
    assert len(tables["Costs: Needle, passkey"].blocks) == 3
    counts = tables["Contexts, queries and wordings"]
    assert counts.blocks[0].rows[0] == ("closed-book", "16", "32", "figure 7")


def test_published_numbers_are_of_the_paper() -> None:
    curves = {(name, curve.label): curve.values for name, curves in published.DOCUMENT_QA.items() for curve in curves}
    assert curves["StreamingQA", "Generative Adapter"][32768] == 32.0
    assert curves["SQuAD", "in-context prompting"][512] == 45.4
    assert {len(values) for values in curves.values()} == {7}
    assert len(published.PERSONALISATION["MSC"]) == 9


@pytest.mark.parametrize(
    ("name", "expected"),
    [("dev-v1", "SQuAD"), ("my-squad-half", "SQuAD"), ("streaming_qa_test", "StreamingQA"), ("msc_test", "MSC"),
     ("locomo", None), ("columns", None)],
)  # fmt: skip
def test_data_sets_by_name(name: str, expected: str | None) -> None:
    assert published.data_set_of(name) == expected


def test_numbers_as_text() -> None:
    assert formats.percent_difference(Estimate(0.0312, -0.002, 0.064, 9, 3)) == "+3.1 [−0.2, +6.4]"
    assert formats.percent_estimate(Estimate(0.5, None, None, 9, 1)) == "50.0"
    assert [formats.significant(value) for value in (None, 0, 0.505123, 1234567, 32.0)] == [
        "–", "0", "0.505", "1,234,567", "32",
    ]  # fmt: skip
    assert [formats.tokens_label(value) for value in (512, 1024, 1536, 32768)] == ["512", "1K", "1536", "32K"]
