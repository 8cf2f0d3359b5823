"""Document QA from small files of each format, and from the real ones where they are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from generative_adapter.config import PromptConfig
from generative_adapter.errors import ConfigError, DataError
from generative_adapter.evaluation.tasks.document_qa import DocumentQa, Documents, document_shots, read_documents
from generative_adapter.evaluation.tasks.protocol import score
from generative_adapter.methods.protocol import Answer

DEV = Path(__file__).parents[4] / "shared" / "data" / "squad" / "dev-v1.1-a.json.zst"


def words(text: str) -> int:
    return len(text.split())


def paragraph(context: str, *questions: tuple[str, list[str]]) -> dict:
    qas = [
        {"id": "x", "question": q, "answers": [{"text": a, "answer_start": 0} for a in given]} for q, given in questions
    ]
    return {"context": context, "qas": qas}


SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Styrian_rivers",
            "paragraphs": [
                paragraph("The Mur flows by Graz.", ("What flows by Graz?", ["The Mur", "Mur"]), ("Where?", [])),
                paragraph("The Enns is long.", ("What is long?", ["The Enns"])),
            ],
        },
        {"title": "Graz", "paragraphs": [paragraph("Graz has a clock tower. It is old.", ("What is old?", ["tower"]))]},
        {"title": "Hills", "paragraphs": [paragraph("A hill nobody asks about.")]},
    ],
}


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    path = tmp_path / "dev-v1.1.json"
    path.write_text(json.dumps(SQUAD), encoding="utf-8")
    return path


def lines(path: Path, rows: list) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_paragraphs_are_documents_under_their_title(squad: Path) -> None:
    data = read_documents(squad)
    assert data.name == "dev-v1.1"
    assert [document.text for document in data.documents] == [
        "Styrian rivers\nThe Mur flows by Graz.",
        "Styrian rivers\nThe Enns is long.",
        "Graz\nGraz has a clock tower. It is old.",
        "Hills\nA hill nobody asks about.",
    ]
    assert [len(document.questions) for document in data.documents] == [1, 1, 1, 0]
    assert data.skipped == {"without an answer": 1}
    assert read_documents(squad, titles=False).documents[1].text == "The Enns is long."


def test_groups_are_asked_about_as_a_whole(squad: Path) -> None:
    # words of the documents: 7, 6, 8, 6 = 27; k = 14 gives 2 parts of 13.5 with middles 3.5, 10 | 17, 24
    task = DocumentQa(read_documents(squad), words, 14)
    first, second = task.samples()
    assert (task.name, first.id) == ("document-qa/dev-v1.1/14", "document-qa/dev-v1.1/14/00000")
    assert first.context.text == "Styrian rivers\nThe Mur flows by Graz.\n\nStyrian rivers\nThe Enns is long."
    assert "\n\n".join(first.context.documents) == first.context.text
    assert [item.query.question for item in first.queries] == ["What flows by Graz?", "What is long?"]
    assert first.queries[0].references == ("The Mur", "Mur")
    assert first.metadata == {"context_tokens": 14, "num_tokens": 13, "num_documents": 2}
    assert second.context.text.endswith("\n\nHills\nA hill nobody asks about.")
    assert score(first, [Answer("the mur"), Answer("the Mur")])[1].values == {"f1": 0, "exact_match": 0, "recall": 0}
    assert list(task.samples()) == [first, second]
    # a part of its own for each: the hill's has nothing to ask
    assert len(list(DocumentQa(read_documents(squad), words, 1).samples())) == 3


def test_limits_keep_texts_whole(squad: Path) -> None:
    data = read_documents(squad)
    whole = {sample.id: sample for sample in DocumentQa(data, words, 14).samples()}
    limited = list(DocumentQa(data, words, 14, limit=2).samples())
    assert [len(sample.queries) for sample in limited] == [1, 1]
    for sample in limited:
        assert sample.context == whole[sample.id].context
        assert set(item.id for item in sample.queries) <= set(item.id for item in whole[sample.id].queries)
    (only,) = DocumentQa(data, words, 14, max_contexts=1, seed=1).samples()
    assert only == whole[only.id]
    parts = {seed: [sample.id for sample in DocumentQa(data, words, 1, max_contexts=2, seed=seed).samples()]
             for seed in range(12)}  # fmt: skip
    assert all(ids == sorted(ids) and len(ids) == 2 for ids in parts.values())
    assert len({tuple(ids) for ids in parts.values()}) == 3  # each pair of the three groups that have questions
    with pytest.raises(ConfigError, match="max_contexts must be positive"):
        list(DocumentQa(data, words, 14, max_contexts=0).samples())


def test_shuffling_follows_the_seed(squad: Path) -> None:
    data = read_documents(squad)
    texts = {seed: next(iter(DocumentQa(data, words, 99, shuffle=True, seed=seed).samples())).context.text
             for seed in range(8)}  # fmt: skip
    assert len(set(texts.values())) > 1
    assert all(sorted(text.split()) == sorted(texts[0].split()) for text in texts.values())
    assert texts[3] == next(iter(DocumentQa(data, words, 99, shuffle=True, seed=3).samples())).context.text


def test_the_papers_wording_is_first_and_shots_come_last(squad: Path) -> None:
    data = read_documents(squad)
    shots = document_shots(data, words, num_shots=2, max_tokens=7)
    assert {shot[0] for shot in shots} == {document.text for document in data.documents[:2]}
    assert set(shots) == {
        ("Styrian rivers\nThe Mur flows by Graz.", "What flows by Graz?", "The Mur"),
        ("Styrian rivers\nThe Enns is long.", "What is long?", "The Enns"),
    }
    (sample,) = DocumentQa(data, words, 99, shots=shots).samples()
    assert sample.wordings[0].open == PromptConfig().context
    assert "above" not in sample.wordings[0].closed
    half = len(sample.wordings) // 2
    assert [wording.shots for wording in sample.wordings] == [()] * half + [shots] * half
    assert sample.wordings[half].name == "figure 7, 2 shots"
    with pytest.raises(DataError, match="0 documents with a question have at most 3 tokens, expected 2"):
        document_shots(data, words, num_shots=2, max_tokens=3)


def test_rows_with_questions_are_documents_too(tmp_path: Path) -> None:
    rows = [{"context": "C one.", "qa": [{"question": "q?", "answers": ["a"]}, {"question": "r?", "answers": []}]},
            {"context": "D two.", "title": "T_t", "qa": []}]  # fmt: skip
    data = read_documents(lines(tmp_path / "own.jsonl", rows))
    assert [document.text for document in data.documents] == ["C one.", "T t\nD two."]
    assert data.skipped == {"without an answer": 1}
    hub = [{"title": "T", "context": "C", "question": q, "answers": {"text": a}} for q, a in
           (("q?", ["a"]), ("r?", []), ("s?", ["b"]), ("t?", []))]  # fmt: skip
    data = read_documents(lines(tmp_path / "hub.jsonl", hub))
    assert [(document.text, len(document.questions)) for document in data.documents] == [("T\nC", 2)]
    assert data.skipped == {"without an answer": 2}


KEY = "20200504\u0000\u0001ab\u0000\u0001"  # as StreamingQA's sorting keys look
QUESTIONS = [
    {"qa_id": "eval-0", "question": "Who won?", "answers": ["Ann", "Ann B.", "Ann"], "answers_additional": [],
     "question_ts": 1588636800, "evidence_ts": 1588550400, "evidence_id": KEY,
     "recent_or_past": "past", "written_or_generated": "written", "toxicity_insult": 0.1},
    {"qa_id": "eval-1", "question": "Where?", "answers": ["Oslo"], "evidence_id": "k2"},
    {"qa_id": "eval-2", "question": "Why?", "answers": [], "evidence_id": "k2"},
    {"qa_id": "eval-3", "question": "When?", "answers": ["May"], "evidence_id": "gone"},
    {"qa_id": "eval-4", "question": "What?", "answers": ["a race"], "evidence_id": KEY},
]  # fmt: skip
NEWS = [
    {"sorting_key": "k2", "publication_ts": 1, "text": "In Oslo it rained."},
    {"sorting_key": "unasked", "publication_ts": 1, "text": "Other news."},
    {"sorting_key": KEY, "publication_ts": 1, "text": "Ann won a race. "},
]


def test_streaming_qa_puts_questions_to_their_documents(tmp_path: Path) -> None:
    questions = tmp_path / "streaminqa_eval.jsonl.gz"  # as published
    questions.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in QUESTIONS).encode()))
    news = lines(tmp_path / "news.jsonl", NEWS)
    data = read_documents(questions, news)
    assert data.name == "streaminqa_eval"
    assert [document.text for document in data.documents] == ["In Oslo it rained.", "Ann won a race."]
    assert data.skipped == {"without an answer": 1, "whose evidence is not in the documents file": 1}
    (sample,) = DocumentQa(data, words, 512).samples()
    assert [(item.id, item.references) for item in sample.queries] == [
        ("eval-1", ("Oslo",)), ("eval-0", ("Ann", "Ann B.")), ("eval-4", ("a race",))]  # fmt: skip
    renamed = lines(tmp_path / "ids.jsonl", [{"id": row["sorting_key"], "text": row["text"]} for row in NEWS])
    assert read_documents(questions, renamed).documents == data.documents


@pytest.mark.parametrize(
    ("rows", "news", "message"),
    [
        ([*QUESTIONS, "{broken"], NEWS, r"q\.jsonl, line 6: not valid JSON \(.*; expected JSON Lines with"),
        (["{broken", *QUESTIONS], NEWS, r"q\.jsonl, line 1: not valid JSON"),
        ([*QUESTIONS, QUESTIONS[1]], NEWS, r"q\.jsonl, line 6: the qa_id 'eval-1' stands in the file before"),
        ([{"question": "?", "answers": ["x"]}], NEWS, r'q\.jsonl, line 1: "qa_id" is missing'),
        ([{"qa_id": "1", "evidence_id": "k2", "question": "?"}], NEWS, r'q\.jsonl, line 1: "answers" is missing'),
        ([{**QUESTIONS[1], "answers": [" "]}], NEWS, r"q\.jsonl, line 1: answer is empty"),
        (QUESTIONS, [NEWS[0], {"sorting_key": "k3", "text": " "}], r'n\.jsonl, line 2: "text" is empty'),
        (QUESTIONS, [NEWS[0], NEWS[0]], r"n\.jsonl, line 2: the document 'k2' stands in the file before"),
        (QUESTIONS, [{"text": "x"}], r'n\.jsonl, line 1: "id" is missing'),
        (QUESTIONS, ["[1]"], r"n\.jsonl, item 1: not an object but a int"),
        (QUESTIONS, NEWS[1:2], r"no question with an answer and a document \(1 without an answer, 4 whose evidence"),
        ([], NEWS, r"q\.jsonl: the file is empty"),
    ],
)
def test_streaming_qa_refuses(tmp_path: Path, rows: list, news: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_documents(lines(tmp_path / "q.jsonl", rows), lines(tmp_path / "n.jsonl", news))


def test_broken_files_are_told_with_their_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"texts are in another file; name it too"):
        read_documents(lines(tmp_path / "q.jsonl", QUESTIONS))
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        read_documents(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"q\.jsonl, line 1: unknown format, found an object with \['a'\]"):
        read_documents(lines(tmp_path / "q.jsonl", [{"a": 1}]))
    good = {"context": "C", "qa": [{"question": "q?", "answers": ["a"]}]}
    with pytest.raises(DataError, match=r"q\.jsonl, line 2: not a JSON object"):
        read_documents(lines(tmp_path / "q.jsonl", [good, "{"]))
    with pytest.raises(DataError, match=r'q\.jsonl, line 2: "context" is empty'):
        read_documents(lines(tmp_path / "q.jsonl", [good, {**good, "context": ""}]))
    broken = {"data": [{"title": "t", "paragraphs": [paragraph(" ", ("q?", ["a"]))]}]}
    with pytest.raises(DataError, match=r's\.json, article 1, paragraph 1: "context" is empty'):
        read_documents(lines(tmp_path / "s.json", [broken]))
    with pytest.raises(DataError, match=r"s: no question with an answer and a document \(1 without an answer\)"):
        read_documents(lines(tmp_path / "s.json", [{"data": [{"paragraphs": [paragraph("C", ("q?", []))]}]}]))
    (tmp_path / "q.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"q\.jsonl\.gz: not a readable gzip file"):
        read_documents(tmp_path / "q.jsonl.gz")


def test_nothing_to_ask_is_refused() -> None:
    with pytest.raises(DataError, match=r"x: no question .* \(none left out\)"):
        Documents("x", ())


@pytest.mark.skipif(not DEV.is_file(), reason="the shared data is not here")
@pytest.mark.parametrize("context_tokens", [512, 1024, 4096])
def test_squad_dev(context_tokens: int) -> None:
    data = read_documents(DEV)
    assert (len(data.documents), data.skipped) == (1036, {})
    task = DocumentQa(data, lambda text: words(text) * 4 // 3, context_tokens)
    samples = list(task.samples())
    assert sum(len(sample.queries) for sample in samples) == 4984
    mean = sum(sample.metadata["num_tokens"] for sample in samples) / len(samples)
    assert mean == pytest.approx(context_tokens, rel=0.02)
    limited = list(DocumentQa(data, task.count_tokens, context_tokens, limit=100).samples())
    assert sum(len(sample.queries) for sample in limited) == 100
    first = data.documents[0]
    assert first.text.startswith("Black Death\nThe Black Death is thought")
    assert first.questions[0][1].answers == ("the arid plains of Central Asia", "Central Asia")
