"""Published numbers to stand beside one's own, as data.

Of "Generative Adapter" (arXiv:2411.05877): Table 1, Table 5 and the abstract. They are of 7B models, so they show the
shape of a result, never what another base model should reach. Leaves out: Llama2's rows, and figure 4, whose values are
in no table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

MODEL = "Mistral-7B-Instruct-v0.2"
PAPER = "arXiv:2411.05877"
METAICL_NOTE = (
    f"Published ({PAPER}, abstract): the Generative Adapter of a 7B model averages 44.9 over all 26 test tasks; the "
    "number of demonstrations isn't stated."
)
_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
# What a data set's name in results says about which one it is: SQuAD's own files are called dev-v1.1, train-v1.1.
_DATA_SETS = {
    "SQuAD": re.compile(r"squad|^(dev|train)-v1", re.IGNORECASE),
    "StreamingQA": re.compile(r"streaming", re.IGNORECASE),
    "MSC": re.compile(r"(^|[^a-z])msc|multi.?session", re.IGNORECASE),
}


@dataclass(frozen=True)
class PublishedCurve:
    """F1 over the length of the context.

    Attributes:
        label: as the paper calls the method.
        method: the method of this project that does the same, for its colour.
        values: F1 in percent by the tokens of a context; the same at all lengths where the method reads none.
        constant: whether it reads no context.
    """

    label: str
    method: str
    values: Mapping[int, float]
    constant: bool = False


@dataclass(frozen=True)
class PublishedCosts:
    """A row of Table 1.

    Attributes:
        label: as the paper calls the method.
        method: the method of this project that does the same, for its colour.
        f1: in percent.
        teraflops: of one query.
        stored_floats: millions of numbers kept of a context, as printed.
    """

    label: str
    method: str
    f1: float
    teraflops: float
    stored_floats: str


def _curve(label: str, method: str, *values: float) -> PublishedCurve:
    return PublishedCurve(label, method, dict(zip(_LENGTHS, values, strict=True)))


def _constant(label: str, method: str, value: float) -> PublishedCurve:
    return PublishedCurve(label, method, dict.fromkeys(_LENGTHS, value), constant=True)


DOCUMENT_QA: dict[str, tuple[PublishedCurve, ...]] = {
    "SQuAD": (
        _constant("zero-shot prompting", "closed-book", 10.8),
        _constant("supervised fine-tuning", "sft-full", 20.7),
        _constant("continual pretraining", "cpt-full", 30.0),
        _curve("in-context prompting", "full-context", 45.4, 44.9, 43.6, 42.6, 42.5, 38.6, 35.1),
        _curve("Generative Adapter", "generative-adapter", 48.8, 43.0, 39.9, 35.9, 33.8, 30.3, 28.0),
    ),
    "StreamingQA": (
        _constant("zero-shot prompting", "closed-book", 13.6),
        _constant("supervised fine-tuning", "sft-full", 19.5),
        _constant("continual pretraining", "cpt-full", 22.2),
        _curve("in-context prompting", "full-context", 47.2, 48.7, 48.1, 48.7, 48.0, 46.0, 39.3),
        _curve("Generative Adapter", "generative-adapter", 51.5, 49.3, 44.7, 40.9, 36.7, 32.7, 32.0),
    ),
}
"""Table 5, Mistral's rows."""

PERSONALISATION: dict[str, tuple[PublishedCosts, ...]] = {
    "MSC": (
        PublishedCosts("closed-book", "closed-book", 8.1, 0.505, "0"),
        PublishedCosts("full-conversation prompting", "full-context", 66.0, 2.059, "128+"),
        PublishedCosts("UltraGist, 64 tokens", "ultragist", 26.5, 0.514, "4"),
        PublishedCosts("UltraGist, 128 tokens", "ultragist", 32.2, 0.552, "8"),
        PublishedCosts("UltraGist, 256 tokens", "ultragist", 38.3, 0.627, "16"),
        PublishedCosts("UltraGist, 512 tokens", "ultragist", 40.8, 0.772, "32"),
        PublishedCosts("UltraGist, 1K tokens", "ultragist", 44.4, 1.067, "64"),
        PublishedCosts("UltraGist, 2K tokens", "ultragist", 42.4, 1.658, "128"),
        PublishedCosts("Generative Adapter", "generative-adapter", 40.2, 0.505, "32"),
    )
}
"""Table 1; the paper's questions about these conversations aren't public, so an own row's are others."""


def data_set_of(name: str) -> str | None:
    """The published data set that a name in results means, such as SQuAD for `dev-v1`; None where none is known."""
    return next((known for known, pattern in _DATA_SETS.items() if pattern.search(name)), None)
