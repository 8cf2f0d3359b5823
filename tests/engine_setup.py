"""What all engines are tested with: texts, questions about them, and where each engine's Python is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_TOKENS = 16
REQUIRED = "ENGINES_REQUIRED"  # set by `make test-engines`: an engine that is missing fails instead of being skipped

TEXTS = (
    "The badges at Kestrel Point are lilac. Ada Quill keeps the keys of the boat house.",
    "The roof of the mill is black. Bo Marsh bought the mill in 1987.",
    "The password of the printer is heron. The printer stands in room 214.",
    "Mina Falk plays the cello. Her sister lives in Bergen.",
    "The soup of the day is lentil. The kitchen closes at nine.",
    "The train to Oslo leaves from platform 6. The ticket costs 48 euros.",
    "Otto's dog is called Pepper. Pepper is seven years old.",
    "The library opens at ten. Its director is Clara Voss.",
)
QUESTIONS = (
    (0, "What colour are the badges at Kestrel Point?"),
    (0, "Who keeps the keys of the boat house?"),
    (1, "What colour is the roof of the mill?"),
    (1, "Who bought the mill?"),
    (1, "When did Bo Marsh buy the mill?"),
    (2, "What is the password of the printer?"),
    (2, "Where does the printer stand?"),
    (3, "What does Mina Falk play?"),
    (3, "Where does her sister live?"),
    (4, "What is the soup of the day?"),
    (4, "When does the kitchen close?"),
    (5, "From which platform does the train to Oslo leave?"),
    (5, "How much does the ticket cost?"),
    (6, "What is Otto's dog called?"),
    (6, "How old is Pepper?"),
    (7, "When does the library open?"),
    (7, "Who is the director of the library?"),
    (0, "What is the capital of France?"),
    (3, "How many legs does a spider have?"),
    (6, "Who keeps the keys?"),
)


@dataclass(frozen=True)
class Prompt:
    """A question to an engine.

    Attributes:
        text: number of the text whose adapter answers.
        ids: tokens of the prompt.
        answer: ours, greedy, from the float32 model.
    """

    text: int
    ids: list[int]
    answer: str


def environment(name: str) -> Path:
    """The Python of an engine's environment; the test is skipped where there is none."""
    python = Path(os.environ.get(f"{name.upper().replace('-', '_')}_PYTHON", ROOT / f".venv-{name}" / "bin" / "python"))
    if not python.is_file():
        if os.environ.get(REQUIRED):
            pytest.fail(f"no environment of {name}: {python} is missing; `make test-engines` makes it")
        pytest.skip(f"no environment of {name} ({python}); `make test-engines` makes it")
    return python
