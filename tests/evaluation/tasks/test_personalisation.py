"""Conversations of both formats with their questions, and the rules that make questions of facts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from generative_adapter.config import PromptConfig
from generative_adapter.errors import ConfigError, DataError
from generative_adapter.evaluation.tasks.persona_questions import question_of, questions_of, sentences
from generative_adapter.evaluation.tasks.persona_rules import RULES
from generative_adapter.evaluation.tasks.personalisation import (
    Personalisation,
    conversation_shots,
    read_conversations,
)

CONVERSATIONS = Path(__file__).parents[4] / "shared" / "data" / "conv"


def turn(speaker: int, text: str, fact: str | None = None) -> dict:
    return {"speaker": speaker, "text": text} | ({"fact": fact} if fact else {})


MSC = [
    {
        "id": "test_1",
        "init_personas": [["I live in Rome."], ["I never say this."]],
        "sessions": [
            {"session": 1, "dialog": [turn(1, "Hi!"), turn(2, "I have two jobs. ", "I have two jobs. I like tea.")]},
            {"session": 2, "dialog": [turn(1, "Graz is home.", "I live in Graz."), turn(2, "It is nice at the sea.",
                                                                                    "I live at the sea.")]},
        ],
    },
    {"id": "test_2", "sessions": [{"session": 1, "dialog": [turn(1, "Hi!", "I like tea.")]}]},
]  # fmt: skip
LOCOMO = [
    {
        "sample_id": "conv-1",
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Bob",
            "session_2": [{"speaker": "Bob", "dia_id": "D2:1", "text": "I went twice."}],
            "session_2_date_time": "2 May, 2023",
            "session_10": [{"speaker": "Ann", "dia_id": "D10:1", "text": "Look!", "blip_caption": "a photo of a boat"}],
            "session_1": [{"speaker": "Ann", "dia_id": "D1:1", "text": "Hello Bob."}],
            "session_1_date_time": "1 May, 2023",
            "session_3_date_time": "3 May, 2023",
        },
        "qa": [
            {"question": "How often did Bob go?", "answer": 2, "evidence": ["D2:1"], "category": 1},
            {"question": "What did Ann show?", "answer": "A boat; since she likes sailing", "category": 3},
            {"question": "What did Bob show?", "adversarial_answer": "a boat", "category": 5},
            {"question": "What did Bob sell?", "answer": "a car", "adversarial_answer": "a boat", "category": 5},
            {"question": "When?", "answer": " ", "category": 2},
        ],
    }
]


def lines(path: Path, rows: list) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_multi_session_chat(tmp_path: Path) -> None:
    data = read_conversations(lines(tmp_path / "msc_test-a.jsonl", MSC))
    (sample,) = Personalisation(data).samples()
    assert sample.id == "personalisation/msc_test-a/test_1"
    assert sample.context.text == (
        "Session 1\nSpeaker 1: Hi!\nSpeaker 2: I have two jobs.\n\n"
        "Session 2\nSpeaker 1: Graz is home.\nSpeaker 2: It is nice at the sea."
    )
    assert sample.context.documents == tuple(sample.context.text.split("\n\n"))
    assert [(item.query.question, item.references, item.metadata) for item in sample.queries] == [
        ("How many jobs does Speaker 2 have?", ("two", "2"), {"rule": "count"}),
        ("Where does Speaker 1 live?", ("Graz", "in Graz"), {"rule": "lives"}),
        ("Where does Speaker 2 live?", ("the sea", "at the sea"), {"rule": "lives"}),
    ]
    assert sample.wordings[0].open == PromptConfig().context
    assert data.skipped == {"facts that no rule makes a question of": 2, "conversations without a question": 1}
    assert data.num_facts == 5


def test_locomo(tmp_path: Path) -> None:
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps(LOCOMO, indent=1))
    data = read_conversations(path)
    (sample,) = Personalisation(data).samples()
    assert sample.context.text == (
        "Session 1, 1 May, 2023\nAnn: Hello Bob.\n\nSession 2, 2 May, 2023\nBob: I went twice.\n\n"
        "Session 10\nAnn: Look! [shares a photo of a boat]"
    )
    assert [(item.id, item.references, item.metadata["category"]) for item in sample.queries] == [
        ("1", ("2",), "multi-hop"), ("2", ("A boat; since she likes sailing", "A boat"), "open-domain")]  # fmt: skip
    assert data.skipped == {"adversarial, which have no right answer": 2, "without an answer": 1}
    assert read_conversations(lines(tmp_path / "locomo.jsonl", LOCOMO)).conversations == data.conversations


def test_limits_and_shots(tmp_path: Path) -> None:
    second = {**MSC[0], "id": "test_3"}
    data = read_conversations(lines(tmp_path / "msc.jsonl", [*MSC, second]))
    assert [len(sample.queries) for sample in Personalisation(data, limit=4).samples()] == [2, 2]
    assert [sample.id for sample in Personalisation(data, max_contexts=1).samples()] == ["personalisation/msc/test_1"]
    with pytest.raises(ConfigError, match="max_contexts must be positive"):
        list(Personalisation(data, max_contexts=0).samples())
    shots = conversation_shots(data, 2)
    first_session = "Session 1\nSpeaker 1: Hi!\nSpeaker 2: I have two jobs."
    assert shots == ((first_session, "How many jobs does Speaker 2 have?", "two"),) * 2
    sample = next(Personalisation(data, shots=shots).samples())
    assert sample.wordings[-1].shots == shots and sample.wordings[0].shots == ()
    with pytest.raises(DataError, match="2 conversations have an answer in their words, expected 3"):
        conversation_shots(data)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ({"text": "x"}, r"line 2: unknown format, found an object with \['text'\]; expected Multi-Session Chat rows"),
        (MSC[0], "line 2: the id 'test_1' stands in the file before"),
        ({**MSC[0], "id": ""}, 'line 2: "id" is empty'),
        ({"id": "x", "sessions": 3}, 'line 2: "sessions" is a int; expected a list of objects'),
        ({"id": "x", "sessions": [{"dialog": [{"speaker": 1}]}]}, 'line 2, session 1: "text" is missing'),
        ({"id": "x", "sessions": [{"dialog": [{"text": "Hi"}]}]}, 'line 2, session 1: "speaker" is missing'),
        ({"sample_id": "x", "conversation": {}, "qa": []}, "line 2: the conversation has no turn"),
        ({"sample_id": "x", "conversation": [], "qa": []}, 'line 2: "conversation" is a list'),
        ({**LOCOMO[0], "qa": [{"answer": "x", "category": 1}]}, 'line 2, question 1: "question" is missing'),
        ({**LOCOMO[0], "qa": [{"question": "q?", "answer": ["x"]}]}, 'line 2, question 1: "answer" is a list'),
    ],
)
def test_broken_rows_are_told_with_their_place(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(DataError, match=r"c\.jsonl, " + message):
        read_conversations(lines(tmp_path / "c.jsonl", [MSC[0], row]))


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"c\.jsonl: no conversation has a question with an answer"):
        read_conversations(lines(tmp_path / "c.jsonl", MSC[1:]))
    with pytest.raises(DataError, match=r"line 3: not valid JSON"):
        (tmp_path / "l.json").write_text('[\n {"sample_id": "x"},\n {,}\n]')
        read_conversations(tmp_path / "l.json")


@pytest.mark.parametrize(
    ("fact", "question", "answers"),
    [
        ("My name is Al.", "What is S's name?", ("Al",)),
        ("My dog's name is Rex.", "What is the name of S's dog?", ("Rex",)),
        ("I have a small cat named Tom.", "What is the name of S's cat?", ("Tom",)),
        ("My wife is called Sue.", "What is the name of S's wife?", ("Sue",)),
        ("My favorite ice cream is vanilla.", "What is S's favorite ice cream?", ("vanilla",)),
        ("Punk rock is my favourite music.", "What is S's favorite music?", ("Punk rock",)),
        ("I have 3 dogs.", "How many dogs does S have?", ("3", "three")),
        ("I have five older brothers", "How many older brothers does S have?", ("five", "5")),
        ("I'm 23 years old.", "How old is S?", ("23",)),
        ("I am from NYC!", "Where is S from?", ("NYC",)),
        ("I  live on a farm.", "Where does S live?", ("a farm", "on a farm")),
        ("I live with a friend.", "With whom does S live?", ("a friend",)),
        ("I was born and raised in Utah.", "Where was S born?", ("Utah", "in Utah")),
        ("I grew up in Sydney.", "Where did S grow up?", ("Sydney", "in Sydney")),
        ("I moved to Japan.", "Where did S move to?", ("Japan",)),
        ("I am a teacher and I work as a nurse.", None, ()),
        ("I work as a nurse.", "What does S work as?", ("a nurse",)),
        ("I'm working at a bank.", "Where does S work?", ("a bank", "at a bank")),
        ("I work for the USPS.", "For whom does S work?", ("the USPS",)),
        ("I am studying law.", "What does S study?", ("law",)),
        ("I majored in art.", "What does S study?", ("art",)),
        ("I am studying abroad.", None, ()),
        ("I play the drums.", "Which instrument does S play?", ("drums",)),
        ("I play games.", None, ()),
        ("I'd like to learn to knit.", "What does S want to learn?", ("knit",)),
        ("I want to become a vet.", "What does S want to be?", ("a vet",)),
        ("I would love to visit Peru.", "Where does S want to go?", ("Peru",)),
        ("I speak French.", "Which language does S speak?", ("French",)),
        ("I\u2019m scared of bees.", "What is S afraid of?", ("bees",)),
        ("I sell cars for a living.", "What does S sell?", ("cars",)),
        ("My dad was a farmer.", "What was S's dad?", ("a farmer",)),
        ("My dad works as a cook.", "What work does S's dad do?", ("a cook", "as a cook")),
        # what no rule fits, or what no one could tell
        ("I like pizza.", None, ()),
        ("I have a dog.", None, ()),
        ("I have two years left.", None, ()),
        ("I was born in the 1980s.", None, ()),
        ("I live with my parents.", None, ()),
        ("I live in Graz, and I love it.", None, ()),
        ("I work at a very large old shop in town.", None, ()),
    ],
)
def test_rules(fact: str, question: str | None, answers: tuple[str, ...]) -> None:
    made = question_of(fact, "S")
    if question is None:
        assert made is None
    else:
        assert made is not None and (made.question, made.answers) == (question, answers)


def test_rules_are_well_formed() -> None:
    for rule in RULES:
        groups = set(rule.pattern.groupindex)
        assert "a" in groups and (rule.prefix is None or rule.prefix in groups)
        rule.question.format(speaker="S", **{group: "x" for group in groups - {"a"}})


def test_facts_of_one_question_put_their_answers_together() -> None:
    told = [("S", "I live in Graz."), ("T", "I live in Graz."), ("S", "I like tea."), ("S", "I live in Austria."),
            ("S", "I live in Graz.")]  # fmt: skip
    made, num_left_out = questions_of(told)
    assert num_left_out == 1
    assert [(item.question, item.answers, len(item.facts)) for item in made] == [
        ("Where does S live?", ("Graz", "in Graz", "Austria", "in Austria"), 3),
        ("Where does T live?", ("Graz", "in Graz"), 1),
    ]


def test_annotations_are_split_to_sentences() -> None:
    assert sentences(" I am 3.5 feet tall. I sing!  Do I? Yes") == ["I am 3.5 feet tall.", "I sing!", "Do I?", "Yes"]


@pytest.mark.skipif(not CONVERSATIONS.is_dir(), reason="the shared data is not here")
def test_the_real_conversations() -> None:
    chat = read_conversations(CONVERSATIONS / "train" / "msc_valid.jsonl.zst")
    made = sum(len(conversation.queries) for conversation in chat.conversations)
    left_out = chat.skipped["facts that no rule makes a question of"]
    assert (chat.num_facts, chat.num_facts - left_out, made) == (23527, 2474, 1998)  # as the module says
    # most answers are told in these words: the questions are about what was said
    said = sum(
        any(reference.lower() in conversation.text.lower() for reference in query.references)
        for conversation in chat.conversations
        for query in conversation.queries
    )
    assert said / made > 0.8
    locomo = read_conversations(CONVERSATIONS / "test" / "locomo-a.json.zst")
    assert (len(locomo.conversations), sum(len(item.queries) for item in locomo.conversations)) == (5, 766)
    assert locomo.skipped == {"adversarial, which have no right answer": 236}
