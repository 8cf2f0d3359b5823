"""What the scripts that write questions keep: `scripts/questions`."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from generative_adapter.data.records import read_records
from generative_adapter.evaluation.tasks.controls import unrelated_questions

zstandard = pytest.importorskip("zstandard")
SCRIPTS = Path(__file__).parents[1] / "scripts" / "questions"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PASSAGE = "The mill at Rugby was built in 1912 by Ann Boot. It made 40 kinds of flour in three halls."


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("- 1912 | When was the mill built?", True),
        ("- Ann Boot | Who built the mill at Rugby?", True),
        ("- 40 | How many kinds of flour did it make?", True),
        ("- three | How many halls did it have?", True),
        ("- Ann Boot | When was the mill built?", False),  # no time
        ("- 1912 | Who built the mill at Rugby?", False),  # no name
        ("- flour | How many kinds of it were made?", False),  # no number
        ("- Rugby | Where is the town of Rugby?", False),  # in the question
        ("- 1913 | When was the mill built?", False),  # not in the passage
        ("- 191 | When was the mill built?", False),  # part of a word
        ("- 1912 | When?", False),  # too short
        ("1912 | When was the mill built?", False),  # not a line of the list
    ],
)
def test_questions_that_went_wrong_are_left_out(line, kept):
    found = script("write_questions").read_pairs(PASSAGE, f"{line}\n{line}\n- cut off")
    answer, _, question = line.removeprefix("- ").partition(" | ")
    assert found == ([{"question": question, "answers": [answer]}] if kept else [])


def test_passages_are_whole_paragraphs():
    paragraph = " ".join(["word"] * 39) + " end."
    text = f"Heading\n{paragraph}\nshort one.\n{paragraph}\n{paragraph}\n{'w ' * 200}end.\n{paragraph}"
    found = script("write_questions").passages_of(text, 10)
    assert found == [f"{paragraph}\n{paragraph}"]


def test_rules_choose_answers_from_every_sentence():
    module = script("write_questions")
    found = module.chosen_answers(PASSAGE, 3, random.Random(0))
    assert len(found) == 3 and all(answer in PASSAGE for answer in found)
    assert any(answer in PASSAGE.split(". ")[1] for answer in found[:2])
    every = module.chosen_answers(PASSAGE, 99, random.Random(0))
    assert {"1912", "Ann Boot", "40"} <= set(every) and len(set(every)) == len(every)
    begun = module.requests_for([{"context": "Nothing."}, {"context": PASSAGE}], 2, random.Random(0))
    assert begun == [(1, f"- {answer} |") for answer in found[:2]]
    assert module.requests_for([{"context": PASSAGE}], 2, None) == [(0, "")]


@pytest.mark.parametrize(
    ("sentence", "answer", "expected"),
    [
        ("They meet on the first Monday of the month.", "Monday", "the first Monday of the month"),
        ("He joined the British government in May.", "British", "the British government"),
        ("It was built in 1912 by Ann Boot.", "1912", "1912"),
        ("The end of May was cold, they said.", "May", "May"),
        ("She is a daughter of King Olaf of Norway.", "King Olaf", "King Olaf of Norway"),
        ("It has 40 kinds of flour.", "40", "40 kinds of flour"),
        ("The mill (near Rugby) burned down.", "Rugby", "Rugby"),
    ],
)
def test_answers_can_take_the_words_along_that_belong_to_them(sentence, answer, expected):
    start = sentence.index(answer)
    span = script("write_questions").longer(sentence, start, start + len(answer))
    assert sentence[slice(*span)] == expected


def test_a_share_of_the_answers_is_longer():
    module = script("write_questions")
    text = " ".join(f"They met on the {name} Monday of the {name} month." for name in ["cold", "odd", "long"])
    for share, low, high in ((0.0, 0, 0), (0.5, 5, 25), (1.0, 30, 30)):
        found = [module.chosen_answers(text, 99, random.Random(n), share) for n in range(10)]
        assert low <= sum("Monday of" in answer for answers in found for answer in answers) <= high


def test_instructions_give_questions(tmp_path, monkeypatch, capsys):
    context = "Context : Anna Lind (born 1950) is a Swedish diver."
    tasks = [
        ("task1326_qa_zre", f"{context} \nAnswer : 1950", "When was Anna Lind born?"),
        ("task1327_qa_zre", f"{context} \nQuestion : What does Anna Lind do?", "diver"),
        ("task1327_qa_zre", f"{context} \nQuestion : Where is Anna Lind from?", "Sweden"),  # doesn't stand there
        ("task999_other", f"{context} \nQuestion : What is it?", "diver"),
        (
            task := "subtask051_multirc_correct_answer_single_sentence",
            "Sentence: She woke early. \nQuestion: When?",
            ".",
        ),
        (task, "Sentence: She woke early. \nQuestion: Who woke?", "Anna.", "She."),
        (task, "She woke early. Who woke?", "She"),  # written in another form
    ]
    rows = [json.dumps({"task": t, "instances": [{"input": i, "output": o}]}) for t, i, *o in tasks]
    source, output = tmp_path / "tasks.jsonl.zst", tmp_path / "out.jsonl"
    source.write_bytes(zstandard.ZstdCompressor().compress("\n".join(rows).encode()))
    monkeypatch.setattr(sys, "argv", ["x", str(source), "--output", str(output)])
    script("instruction_questions").main()
    first, second = map(json.loads, output.read_text().splitlines())
    assert first == {
        "context": "Anna Lind (born 1950) is a Swedish diver.",
        "qa": [
            {"question": "When was Anna Lind born?", "answers": ["1950"]},
            {"question": "What does Anna Lind do?", "answers": ["diver"]},
        ],
    }
    assert second == {"context": "She woke early.", "qa": [{"question": "Who woke?", "answers": ["She"]}]}
    assert "3 questions" in capsys.readouterr().out


def test_questions_of_conversations_are_asked_of_the_sessions_that_answer_them(tmp_path, monkeypatch, capsys):
    turns = [
        [{"speaker": 1, "text": "I own a CAT, and catfish too.", "fact": "I own a cat."}],
        [{"speaker": 2, "text": "I am 33.", "fact": "I am 33 years old."}, {"speaker": 1, "text": "So old!"}],
        [{"speaker": 1, "text": "The catalogue is on its way."}],
    ]
    sessions = [{"session": number, "dialog": dialog} for number, dialog in enumerate(turns, start=1)]
    source, output = tmp_path / "msc.jsonl", tmp_path / "questions.jsonl"
    source.write_text(json.dumps({"id": "a", "sessions": sessions}) + "\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["conversation_questions.py", str(source), "--output", str(output)])
    script("conversation_questions").main()
    records = list(read_records(output))
    assert [(each.context, [(q.question, q.answers) for q in each.questions]) for each in records] == [
        ("Session 1\nSpeaker 1: I own a CAT, and catfish too.", [("What does Speaker 1 own?", ("a CAT",))]),
        ("Session 2\nSpeaker 2: I am 33.\nSpeaker 1: So old!", [("How old is Speaker 2?", ("33",))]),
    ]
    assert "2 sessions, 2 questions" in capsys.readouterr().out
    sys.argv += ["--named-share", "1"]
    script("conversation_questions").main()
    first, second = read_records(output)
    name = first.context.partition(":")[0]
    assert first.context == f"{name}: I own a CAT, and catfish too."
    assert [each.question for each in first.questions] == [f"What does {name} own?"]
    (other, *_), (same, *_) = (line.split(":") for line in second.context.splitlines())
    assert same == name != other and "Speaker" not in name + other
    assert [(each.question, each.answers) for each in second.questions] == [(f"How old is {other}?", ("33",))]


def test_names_of_speakers_are_not_spoken_of_otherwise():
    module = script("conversation_questions")
    alone = ["Ingrid", "Theo"]
    text = " ".join(name for name in module.first_names() if name not in alone)
    assert sorted(module.two_names(text, random.Random(0))) == alone


def test_written_questions_stay_if_a_reader_answers_them_alike(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = script("filter_questions")
    answers = {"When?": "in 1912", "Who?": "Ann", "What?": "", "How many kinds?": "40 kinds"}
    asked = []

    def read(pairs):
        asked.extend(pairs)
        return [answers[question] for _, question in pairs]

    def row(title, *pairs):
        qa = [{"question": question, "answers": [answer]} for question, answer in pairs]
        return {"context": PASSAGE, "title": title, "qa": qa}

    rows = [
        row("first", ("When?", "1912"), ("Who?", "Goran"), ("How many kinds?", "40 kinds")),
        row("second", ("What?", "flour")),
        row("third", ("Who?", "Ann")),
    ]
    kept = module.answered(rows, read, 0.6)
    assert asked == [(PASSAGE, question) for question in ("When?", "Who?", "How many kinds?", "What?", "Who?")]
    assert kept == [row("first", ("When?", "1912"), ("How many kinds?", "40 kinds")), row("third", ("Who?", "Ann"))]
    exactly = module.answered(rows, read, 1.0)
    assert exactly == [row("first", ("How many kinds?", "40 kinds")), row("third", ("Who?", "Ann"))]

    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    parts = [module.lines_of([file, file], part, 4) for part in (1, 2, 3, 4)]
    assert parts == [[rows[0], rows[1]], [rows[1], rows[2]], [rows[2]], [rows[0]]]


def test_a_filter_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = script("filter_questions")
    source, output = tmp_path / "questions.jsonl", tmp_path / "kept.jsonl"
    rows = [{"context": f"text {n}", "qa": [{"question": "Which?", "answers": [str(n)]}]} for n in range(150)]
    source.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    monkeypatch.setattr(
        module, "vllm_reader", lambda folder: lambda pairs: [context.removeprefix("text ") for context, _ in pairs]
    )
    command = ["filter_questions.py", str(source), "--reader", "x", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [*command, "--max-seconds", "0"])
    module.main()
    assert not output.exists()
    output.write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    output.with_suffix(".done").write_text("1")
    monkeypatch.setattr(sys, "argv", command)
    module.main()
    assert list(map(json.loads, output.read_text(encoding="utf-8").splitlines())) == rows
    assert "150 passages, 149 questions of 149 kept" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "--part", "3/2"])
    with pytest.raises(SystemExit):
        module.main()


def test_cloze_questions_are_added_to_a_passage(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    adds = script("cloze_questions")
    asked = [{"question": "When was the mill built?", "answers": ["1912"]}]
    other = "The bridge at Orrin was opened in 1804 by Bess Quill, who had drawn it herself for the old town council."
    first, second, rest = tmp_path / "first.jsonl", tmp_path / "second.jsonl", tmp_path / "rest.jsonl"
    first.write_text(json.dumps({"context": PASSAGE, "title": "Mill", "qa": asked}) + "\n")
    more = [*asked, {"question": "Who built the mill?", "answers": ["Ann Boot"]}]
    second.write_text(json.dumps({"context": PASSAGE, "qa": more}) + "\n")
    wrong = [{"question": "Who is it?", "answers": ["Nobody"]}]
    rest.write_text("".join(json.dumps({"context": each, "qa": wrong}) + "\n" for each in (other, PASSAGE)))
    output = tmp_path / "out.jsonl"
    files = [str(first), str(second), "--passages", str(rest)]
    arguments = ["cloze_questions.py", *files, "--per-passage", "2", "--output", str(output)]
    monkeypatch.setattr("sys.argv", arguments)
    adds.main()
    mill, bridge = (json.loads(line) for line in output.read_text().splitlines())
    assert (mill["context"], mill["title"], bridge["context"]) == (PASSAGE, "Mill", other)
    assert mill["qa"][:2] == more and wrong[0] not in bridge["qa"]
    for row, known in ((mill, 2), (bridge, 0)):
        new = row["qa"][known:]
        answers = [each["answers"][0] for each in row["qa"][:known]]
        assert 0 < len(new) <= 2 and not any(each["answers"][0] in answers for each in new)
        assert all(each["answers"][0] in row["context"] for each in new)
    added = len(mill["qa"]) + len(bridge["qa"]) - 2
    assert f"2 passages, 2 questions and {added} cloze questions more" in capsys.readouterr().out
    assert len(list(read_records(output))) == 2
    asked = [{"question": "When was it opened?", "answers": ["1804"]}]
    for known, expected in (([], True), (asked, False)):
        rows = [adds.with_cloze({"context": other, "qa": known}, 9, random.Random(seed)) for seed in range(5)]
        again = [each["answers"] == ["1804"] for row in rows for each in row["qa"][len(known) :]]
        assert again and any(again) == expected


def test_cloze_questions_of_plain_documents(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = script("cloze_questions")
    about = "The mill at Orrin on the river {0} was built in {1} by {2} Boot, who sold flour to the whole town. "
    texts = [
        "\n".join((about.format(river, year, name) * 4).strip() for year, name in ((1804, "Ann"), (1831, "Max")))
        for river in ("Rill", "Tarn", "Esk")
    ]
    rows = [{"text": text, "title": "Mills", "source": "wikipedia"} for text in texts]
    rows.append({"text": texts[0].replace("mill", "farm"), "title": "A novel", "source": "gutenberg"})
    documents, output = tmp_path / "texts.jsonl.zst", tmp_path / "out.jsonl"
    documents.write_bytes(zstandard.ZstdCompressor().compress("\n".join(map(json.dumps, rows)).encode()))
    monkeypatch.setattr("sys.argv", ["cloze_questions.py", "--output", str(output)])
    with pytest.raises(SystemExit):
        module.main()
    assert "--texts" in capsys.readouterr().err
    sys.argv += ["--texts", str(documents), "--num-passages", "5", "--per-document", "2"]
    module.main()
    made = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(made) == 5 and len({row["context"] for row in made}) == 5
    assert all(row["context"] in "\n".join(texts).split("\n") and row["source"] == "wikipedia" for row in made)
    assert all(0 < len(row["qa"]) <= 2 and each["answers"][0] in row["context"] for row in made for each in row["qa"])
    assert "5 passages, 0 questions" in capsys.readouterr().out


TEMPLATE = {
    "id": "notes-01",
    "kind": "meeting notes",
    "text": "Choir committee, {{date}}\n"
    + "We talked for a long time about many things. " * 6
    + "{{chair}} chaired and "
    "{{writer}} wrote this down. The hall costs {{rent}} a week and the piano {{repair}}. {{chair}} orders {{thing}}. "
    "The concert is on {{concert}}, the next meeting on {{next}} at {{place}}.",
    "slots": {
        "date": ["2 May", "9 May", "11 May", "30 May"],
        "chair": ["Ida Brandt", "Noor Sayed", "Luis Prado", "Anke Holm"],
        "writer": ["Bo Lind", "Ida Brandt", "Maya Roy", "Tariq Aziz"],
        "rent": ["40 pounds", "55 pounds", "70 pounds", "85 pounds"],
        "repair": ["120 pounds", "310 pounds", "90 pounds", "55 pounds"],
        "thing": ["new folders", "music stands", "two lamps", "a heater"],
        "concert": ["3 June", "10 June", "17 June", "24 June"],
        "next": ["4 June", "10 June", "18 June", "25 June"],
        "place": ["the library", "Bo's flat", "the school", "the old mill"],
    },
    "questions": [
        {"wordings": [f"{word} {name}?", f"Tell me {name}."], "answer": answer}
        for word, name, answer in [
            ("Who is", "the chair", "{{chair}}"),
            ("Who is", "the writer", "{{writer}}"),
            ("What is", "the rent of the hall", "{{rent}} a week"),
            ("What is", "the piano's cost", "{{repair}}"),
            ("What does", "{{chair}} order", "{{thing}}"),
            ("When is", "the concert", "{{concert}}"),
            ("When is", "the next meeting", "{{next}}"),
            ("Where is", "the next meeting", "{{place}}"),
        ]
    ],
}


def test_documents_of_a_template_tell_every_answer_and_differ():
    module = script("document_questions")
    module.check(TEMPLATE)
    made = [module.variant(TEMPLATE, number) for number in range(4)]
    assert made == [module.variant(TEMPLATE, number) for number in range(4)]
    answers = [{each["question"]: each["answers"][0] for each in document["qa"]} for document in made]
    assert all(len(each) == 8 for each in answers)
    for document in made:
        for each in document["qa"]:
            assert each["answers"][0] in document["context"] and each["answers"][0] not in each["question"]
        assert "{{" not in str(document)
    wordings = {question for each in answers for question in each if "the writer" in question}
    assert wordings == {"Who is the writer?", "Tell me the writer."}
    writers = [next(answer for asked, answer in each.items() if "the writer" in asked) for each in answers]
    assert len(set(writers)) >= 3
    for number in range(60):  # one person or sum never stands for two things
        document = module.variant(TEMPLATE, number)
        found = [each["answers"][0].removesuffix(" a week") for each in document["qa"]]
        assert len(set(found)) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": TEMPLATE["text"] + " {{lost}}"}, "no slot 'lost'"),
        ({"text": TEMPLATE["text"].replace("{{writer}}", "somebody")}, "slot 'writer' isn't in the text"),
        ({"slots": {**TEMPLATE["slots"], "rent": ["40 pounds"] * 4}}, "slot 'rent' needs 4 different"),
        ({"questions": TEMPLATE["questions"][:7]}, "7 questions; 8 or more"),
        ({"questions": [*TEMPLATE["questions"], {"wordings": ["Who?"], "answer": "{{chair}}"}]}, "2 wordings"),
        ({"questions": [*TEMPLATE["questions"], {"wordings": ["A?", "B?"], "answer": "things"}]}, "holds no slot"),
        ({"questions": [*TEMPLATE["questions"], {"wordings": ["A?", "B?"], "answer": "{{rent}} a day"}]}, "stand in"),
        (
            {"questions": [*TEMPLATE["questions"], {"wordings": ["Is it {{rent}}?", "B?"], "answer": "{{rent}}"}]},
            "holds its answer",
        ),
        ({"text": "{{" + "}} {{".join(TEMPLATE["slots"]) + "}}"}, "stand in the text"),
        ({"slots": {}}, "no slot"),
        ({"questions": [3] * 8}, "TypeError"),
    ],
)
def test_a_template_that_is_wrong_is_told_of(change, message):
    module = script("document_questions")
    with pytest.raises(module.TemplateError, match=message) as raised:
        module.check({**TEMPLATE, **change})
    assert str(raised.value).startswith("notes-01: ")


def test_held_out_templates_are_not_trained_on(tmp_path):
    module = script("document_questions")
    path = tmp_path / "notes.jsonl"
    path.write_text("\n".join(json.dumps({**TEMPLATE, "id": f"notes-{number:02}"}) for number in range(25)))
    parts = {part: [each["id"] for each in module.read_templates([path], part)] for part in ("training", "held-out")}
    assert parts["held-out"] == ["notes-09", "notes-19"]
    assert len(parts["training"]) == 23 and not set(parts["training"]) & set(parts["held-out"])
    assert len(module.read_templates([path])) == 25
    with pytest.raises(module.TemplateError, match="more than one template is called notes-00"):
        module.read_templates([path, path])
    path.write_text("[1]")
    with pytest.raises(module.TemplateError, match="line 1 is no JSON object"):
        module.read_templates([path])


def test_documents_are_asked_unrelated_questions_that_they_say_nothing_about():
    module = script("document_questions")
    documents = [module.variant(TEMPLATE, number) for number in range(6)]
    unrelated = [
        {"question": "What is the capital of Peru?", "answers": ["Lima"]},
        {"question": "Where are books lent?", "answers": ["the library"]},
        {"question": "What colour is coal?", "answers": ["black"]},
    ]
    module.add_unrelated(documents, unrelated, 2)
    added = [[each["question"] for each in document["qa"][8:]] for document in documents]
    assert all(len(each) == 2 for each in added)
    for document, own in zip(documents, added, strict=True):
        assert "Where are books lent?" not in own or "the library" not in document["context"]
    assert {question for own in added for question in own} == {each["question"] for each in unrelated}


def test_documents_made_by_the_command_are_read_as_training_data(tmp_path, monkeypatch, capsys):
    module = script("document_questions")
    path, output = tmp_path / "notes.jsonl", tmp_path / "made" / "documents.jsonl"
    path.write_text("\n".join(json.dumps({**TEMPLATE, "id": f"notes-{number}"}) for number in range(10)))
    arguments = [str(path), "--output", str(output), "--variants", "3"]
    general = ["--unrelated", str(SCRIPTS / "general-questions.jsonl")]
    monkeypatch.setattr(sys, "argv", ["document_questions.py", *arguments, *general])
    module.main()
    records = list(read_records(output))
    assert len(records) == 27 and all(len(each.questions) == 10 for each in records)
    assert "27 documents, 270 questions" in capsys.readouterr().out
    broken = {**TEMPLATE, "id": "broken", "questions": []}
    path.write_text(json.dumps(TEMPLATE) + "\n" + json.dumps(broken))
    monkeypatch.setattr(sys, "argv", ["document_questions.py", str(path)])
    with pytest.raises(SystemExit, match="1 of 2 templates are wrong"):
        module.main()
    assert "broken: 0 questions" in capsys.readouterr().out


def test_the_documents_in_the_repository_are_right_and_share_nothing_with_what_is_tested():
    """No text of `examples/` and no general question that answers are compared on."""
    module = script("document_questions")
    templates = module.read_templates(sorted((SCRIPTS / "documents").glob("*.jsonl")))
    assert len(templates) >= 300
    for template in templates:
        module.check(template)
    known = " ".join(" ".join(each["text"].split()).casefold() for each in templates)
    examples = Path(__file__).parents[1] / "examples"
    for name in ("chat/chat.txt", "meeting/notes.md", "news/article.txt", "readme/README.md"):
        words = (examples / name).read_text(encoding="utf-8").casefold().split()
        shared = [at for at in range(len(words) - 7) if " ".join(words[at : at + 8]) in known]
        assert not shared, " ".join(words[shared[0] : shared[0] + 8])
    tested = {answer.casefold() for each in unrelated_questions() for answer in each.references}
    general = [json.loads(line) for line in (SCRIPTS / "general-questions.jsonl").read_text().splitlines()]
    assert len(general) > 200
    assert not [each for each in general if {answer.casefold() for answer in each["answers"]} & tested]


def written_file(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_written_questions_join_those_that_their_passage_has(tmp_path, monkeypatch, capsys):
    module = script("passage_questions")
    passages = written_file(
        tmp_path / "passages.jsonl",
        {"context": PASSAGE, "qa": [{"question": "Who built the mill?", "answers": ["Ann Boot"]}]},
        {"context": "The barn is red.", "qa": [{"question": "What is red?", "answers": ["The barn"]}]},
        {"context": "The gate is shut.", "qa": [{"question": "What is shut?", "answers": ["The gate"]}]},
    )
    qa = [["When was the mill built?", "1912"], ["Who built the mill ?", "Ann Boot"]]
    elsewhere = {"passage": module.digest("Another text."), "qa": [["What is this?", "text"]]}
    first = written_file(tmp_path / "a.jsonl", {"passage": module.digest(PASSAGE), "qa": qa}, elsewhere)
    spaced = module.digest(PASSAGE.replace(". ", ".\n"))
    second = written_file(tmp_path / "b.jsonl", {"passage": spaced, "qa": [["How many halls were there?", "three"]]})
    output = tmp_path / "made" / "questions.jsonl"
    monkeypatch.setattr(
        sys, "argv", ["x", str(second), str(first), "--passages", str(passages), "--output", str(output)]
    )
    module.main()
    mill, barn, gate = read_records(output)
    assert [(each.question, each.answers) for each in mill.questions] == [
        ("Who built the mill?", ("Ann Boot",)),
        ("When was the mill built?", ("1912",)),
        ("How many halls were there?", ("three",)),
    ]
    assert mill.context == PASSAGE and [each.question for each in (*barn.questions, *gate.questions)] == [
        "What is red?",
        "What is shut?",
    ]
    told = capsys.readouterr().out
    assert "3 passages, 5 questions, 2 of them written" in told
    assert "1 of 2 passages with written questions aren't in these files" in told
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--written-only"])
    module.main()
    (mill,) = read_records(output)
    asked = ["When was the mill built?", "Who built the mill ?", "How many halls were there?"]
    assert mill.context == PASSAGE and [each.question for each in mill.questions] == asked
    assert "1 passages, 3 questions, 3 of them written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("question", "answer", "wrong"),
    [
        ("When was the mill built?", "1912", None),
        ("How many kinds of flour were made?", "40", None),
        ("When was the mill built", "1912", "no question mark"),
        ("When was the mill built?", "1913", "doesn't stand"),
        ("When was the mill built?", "", "doesn't stand"),
        ("Who was Ann Boot of Rugby?", "Ann Boot", "holds its answer"),
        ("Who was Ann Booth?", "Ann Boot", None),  # another word
        ("What is told of the mill?", PASSAGE[: PASSAGE.index(".")], "longer than 9 words"),
    ],
)
def test_a_written_question_that_its_passage_does_not_answer_is_told(tmp_path, question, answer, wrong):
    module = script("passage_questions")
    found = module.complaint(question, answer, PASSAGE)
    assert (found is None) if wrong is None else (wrong in found)
    passages = written_file(tmp_path / "passages.jsonl", {"context": PASSAGE, "qa": []})
    written = {module.digest(PASSAGE): [(question, answer)]}
    if wrong is None:
        assert len(next(module.with_written(read_records(passages), written))["qa"]) == 1
    else:
        with pytest.raises(module.WrittenQuestionError, match=wrong):
            list(module.with_written(read_records(passages), written))


@pytest.mark.parametrize("row", ["no object", {"qa": []}, {"passage": "00", "qa": [["one alone"]]}, {"passage": "00"}])
def test_a_line_that_holds_no_written_questions_is_told_with_its_number(tmp_path, row):
    module = script("passage_questions")
    path = written_file(tmp_path / "a.jsonl", {"passage": "00", "qa": []}, row)
    with pytest.raises(module.WrittenQuestionError, match=r"a\.jsonl: line 2 is no"):
        module.read_written([path])


def test_the_written_questions_in_the_repository_are_answered_by_their_passages():
    """Of those passages that are there: the training sets lie beside the repository, or nowhere."""
    module = script("passage_questions")
    written = module.read_written(sorted((SCRIPTS / "passages").glob("*.jsonl")))
    assert sum(map(len, written.values())) > 10_000
    for qa in written.values():
        asked = [question.casefold() for question, _ in qa]
        assert len(set(asked)) == len(asked)
    data = Path(__file__).parents[2] / "shared" / "data" / "squad"
    paths = [path for path in (data / "train-subset-v1.1.json.zst", data / "train-extra.jsonl.zst") if path.is_file()]
    if not paths:
        pytest.skip("no training passages of SQuAD")
    rows = list(module.with_written((record for path in paths for record in read_records(path)), written))
    assert sum(len(row["qa"]) for row in rows) > 25_000
