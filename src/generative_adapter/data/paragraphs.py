"""Paragraphs and sentences of plain text, by rules. Leaves out: tokens, so how long they are for a model."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

_SENTENCE_END = re.compile(r"[.!?][\"”\u2019')\]]*\s+(?=[\"“\u2018'(\[]?[A-Z0-9])")
_SHORTENED = "mr mrs ms dr prof capt gen col sir lt sgt rev hon st vs etc jr sr e.g i.e approx inc ltd co"
_ABBREVIATIONS = frozenset(_SHORTENED.split())
_BEFORE_NUMBERS = frozenset(("no", "fig", "vol", "p", "pp"))
_LINE_WIDTHS = (40, 100)  # characters of the lines that a paragraph may be broken into


def paragraphs(text: str) -> list[str]:
    r"""The paragraphs of a text, each with the line ends behind it: put together they are the text.

    A line is a paragraph, and so are the lines between two blank ones where a paragraph is broken into lines of about
    equal length; they are joined by spaces. A blank line, or several, behind a paragraph make `"\n\n"`; space at the
    end of lines is dropped.
    """
    found: list[str] = []
    lines = (line.rstrip() for line in text.splitlines())
    for is_blank, group in itertools.groupby(lines, key=lambda line: not line):
        if is_blank:
            continue
        block = list(group)
        if _is_broken_into_lines(block):
            block = [" ".join(line.strip() for line in block)]
        if found:
            found[-1] += "\n"
        found += [f"{line}\n" for line in block]
    if found:
        found[-1] = found[-1].rstrip()
    return found


def sentences(text: str) -> Iterator[str]:
    """The sentences of each paragraph of a text; a mark behind an initial or a common abbreviation ends none."""
    for paragraph in paragraphs(text):
        start = 0
        for end in (*sentence_ends(paragraph), len(paragraph)):
            sentence = paragraph[start:end].strip()
            start = end
            if sentence:
                yield sentence


def sentence_ends(paragraph: str) -> Iterator[int]:
    """Where the sentences of a paragraph but the last end, with the space behind them."""
    return (end.end() for end in _SENTENCE_END.finditer(paragraph) if _ends_sentence(paragraph, end.start()))


def _is_broken_into_lines(block: list[str]) -> bool:
    """Whether lines are of one width and few begin a sentence."""
    if len(block) < 2 or not all(_LINE_WIDTHS[0] <= len(line) <= _LINE_WIDTHS[1] for line in block[:-1]):
        return False
    goes_on = sum(line.lstrip()[0].islower() for line in block[1:])
    return max(map(len, block[:-1])) < 1.5 * min(map(len, block[:-1])) and 3 * goes_on >= len(block) - 1


def _ends_sentence(text: str, stop: int) -> bool:
    """Whether the mark at a place ends a sentence and not an abbreviation or initial."""
    if text[stop] != ".":
        return True
    word = text[text.rfind(" ", 0, stop) + 1 : stop].lstrip("(\"“'")
    if word.lower() in _BEFORE_NUMBERS and text[stop + 1 :].lstrip()[:1].isdigit():
        return False
    return not (word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper()))
