"""A wording with every part, and a context of a few lines."""

from __future__ import annotations

import pytest

from generative_adapter.methods.protocol import Context, Query, Wording

TEXT = "Ada keeps bees in Ulm.\nBo sells red kites.\nCy naps at noon, and never before."


@pytest.fixture
def context() -> Context:
    return Context(TEXT, tuple(TEXT.split("\n")))


@pytest.fixture(params=["chat", "bare"])
def wording(request: pytest.FixtureRequest) -> Wording:
    """The same wording as a chat and as a bare prompt."""
    return Wording(
        request.param,
        closed="Answer shortly.\nQ: {question}\nA:",
        open="{context}\n\nQ: {question}\nA:",
        chat=request.param == "chat",
    )


@pytest.fixture
def queries() -> list[Query]:
    """Generated and scored ones, of unequal length."""
    return [
        Query("Who naps?"),
        Query("Who sells kites, and which?", ("Ada", "Bo", "nobody at all")),
        Query("Where does Ada keep her bees when it rains?"),
        Query("Is it noon?", ("yes", "no")),
    ]
