from __future__ import annotations

import pytest

from generative_adapter.errors import ConfigError
from generative_adapter.evaluation.context_split import SEPARATOR, ContextSplit


def test_separator():
    split = ContextSplit()
    assert split(f" The town.\n{SEPARATOR}\n Where?\nA: ") == ("The town.", "Where?\nA: ")
    assert split("Where?\n ") == ("", "Where?\n ")
    assert split(f"{SEPARATOR}Where?") == ("", "Where?")
    assert split(f"One.{SEPARATOR}Q1 A1\n\nTwo.{SEPARATOR}Q2") == ("One.\n\nQ1 A1\n\nTwo.", "Q2")
    assert ContextSplit("##")("One ## two") == ("One", "two")


def test_pattern():
    split = ContextSplit("", r"(?s)Background: (?P<context>.*?)\n\n(?=Question:)")
    assert split("Title: T\n\nBackground: A\nB.\n\nQuestion: Q?") == ("A\nB.", "Title: T\n\nQuestion: Q?")
    assert split("Background: A.\n\nQuestion: 1\n\nBackground: B.\n\nQuestion: 2") == (
        "A.\n\nB.",
        "Question: 1\n\nQuestion: 2",
    )
    assert split(" Question: Q?") == ("", " Question: Q?")
    assert ContextSplit("", r"<<.*?>>")("<<A>> B") == ("<<A>>", "B")


def test_one_rule_at_a_time():
    for separator, pattern in (("", None), ("##", "a")):
        with pytest.raises(ConfigError, match="give one of them"):
            ContextSplit(separator, pattern)
    with pytest.raises(ConfigError, match="no regular expression"):
        ContextSplit("", "(")
