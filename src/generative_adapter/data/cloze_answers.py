"""Answers that a sentence can be asked for: numbers, dates, names, quotes and, where these are few, phrases.

By rules alone, so a name is a run of words with capitals, and what it names is guessed from the words around it. Leaves
out: the question (`cloze`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_FUNCTION_WORDS = (
    "the a an of in on at to for and or but nor with by from as if is are was were be been being it its this that "
    "these those he she him they them his her their which who whom whose what when where why how not no also has have "
    "had do does did will would can could may might must shall should than then there so such into onto over under "
    "between after before during about above below against among through until while because since other others more "
    "most some any all each every both either own same too very just only even still yet again once i you we us our "
    "your my me up down out off although though however despite within without upon whether like unlike thus hence "
    "therefore now here many few several another s t"
)
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
_PREPOSITIONS = "in|at|near|to|from|outside|over|around|across|throughout|towards?"
_PLACE = re.compile(rf"\b(?:{_PREPOSITIONS})(?: the)? $")
_TITLE_WORDS = (
    "Mr|Mrs|Ms|Miss|Dr|Prof|Professor|President|King|Queen|Prince|Princess|Sir|Lady|Lord|Captain|General|Colonel|Saint|"
    "St|Rev|Lt|Pope|Emperor|Senator|Judge|Father|Mother|Aunt|Uncle"
)
_TITLES = frozenset(_TITLE_WORDS.split("|"))
_ADJECTIVE_ENDINGS = ("an", "ish", "ese", "ern")
_PERSON_BEFORE = re.compile(
    rf"\b(?:{_TITLE_WORDS}|son|daughter|wife|husband|brother|sister|author|director|"
    r"singer|painter|poet|actor|actress|engineer|founder)\.?,? $"
)
_PERSON_BEHIND = re.compile(
    r",? (?:said|says|wrote|told|asked|argued|claimed|born|died|married|was born|himself|herself|who|and his|and her|"
    r"believed|thought|explained|replied|sang|painted)\b"
)
_THING = re.compile(
    r"\b(?:University|College|School|Company|Corporation|Inc|Ltd|Institute|Museum|Church|Party|Act|War|Battle|Agency|"
    r"Association|Society|Council|Committee|Department|Office|Band|Records|Award|Prize|League|Club|Times|Journal|Bank|"
    r"Airlines|Group|Society|Commission|Union|Team|Project|System|Program)\b"
)
_PLACE_NAME = re.compile(
    r"\b(?:River|Lake|Street|Road|Avenue|City|County|Island|Islands|Mountains?|Valley|Park|Bay|Beach|Sea|Ocean|Province|"
    r"Region|District|Village|Hill|Square|Bridge)\b"
)
# What asks for a measure, and the units it is given in.
_UNITS = {
    ("how far", "how long"): "mile miles kilometre kilometres kilometer kilometers km",
    ("how long",): "year years month months week weeks day days hour hours minute minutes second seconds",
    ("how long", "how high"): "foot feet metre metres meter meters inch inches cm mm",
    ("how heavy", "how much"): "kg kilogram kilograms pound pounds ton tons tonne tonnes gram grams",
    ("how large",): "acre acres hectare hectares",
    ("how many degrees", "what temperature"): "degree degrees",
}
UNIT_WORDS: dict[str, tuple[str, ...]] = {unit: words for words, units in _UNITS.items() for unit in units.split()}

_NUMBER_WORD = (
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|"
    "nineteen|(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?:-[a-z]+)?"
)
_CAPITALS = r"[A-Z][\w-]+(?:['\u2019][A-Z]\w+)?"
# In order of precedence: a later candidate never overlaps an earlier one.
_PATTERNS = (
    (
        "date",
        re.compile(rf"\b(?:\d{{1,2}} (?:{_MONTH})(?:,? \d{{4}})?|(?:{_MONTH}) \d{{1,2}}(?:, \d{{4}})?)\b"),
    ),
    ("month", re.compile(rf"\b(?:{_MONTH}) \d{{4}}\b")),
    ("time", re.compile(r"(?<![\d.:])\d{1,2}(?::\d\d(?: ?[ap]\.?m\b)?| ?[ap]\.?m\b)(?!:)")),
    ("money", re.compile(r"[$€£]\d[\d,]*(?:\.\d+)?(?: (?:hundred|thousand|million|billion|trillion))?\b")),
    ("percentage", re.compile(r"(?<![\w.,$€£/\u2013-])\d[\d,]*(?:\.\d+)?(?: ?%|(?: percent| per cent)\b)")),
    ("decade", re.compile(r"\b(?:1[0-9]|20)\d0s\b")),
    ("measure", re.compile(rf"(?<![\w.,$€£/\u2013-])\d[\d,]*(?:\.\d+)?[ \u00a0](?:{'|'.join(UNIT_WORDS)})\b")),
    ("year", re.compile(r"(?<![\w.,$€£/\u2013-])(?:1[0-9]\d\d|20[0-4]\d)(?![\w%\u2013]|[.,]\d| [a-z]{3,}s\b)")),
    (
        "number",
        re.compile(
            r"(?<![\w.,$€£/\u2013-])\d(?:[\d,]*\d)?(?:\.\d+)?(?: (?:hundred|thousand|million|billion|trillion))?"
            r"(?![\w\u2013-])"
        ),
    ),
    (
        "count",
        re.compile(rf"(?<![\w-])(?:{_NUMBER_WORD})(?: (?:hundred|thousand|million))?(?= [a-z]{{3,}})(?![\w-])", re.I),
    ),
    ("quote", re.compile(r"(?<=[\"“])\w[^\"“”]{1,37}[^\s\"“”.,;:!?](?=[.,;:!?]?[\"”])")),
    ("name", re.compile(rf"(?<![\w.\u2019'-]){_CAPITALS}(?: (?:of |the |de |van |von )?{_CAPITALS}){{0,5}}")),
)
_PHRASE = re.compile(
    r"\b(?:the|a|an|of|by|with|for|its|their|his|her|in|from|and) ((?:[a-z-]{4,} )?[a-z][a-z-]{3,}[a-z])"
    rf"(?=[,.;:!?)]|$| (?:{'|'.join(sorted(STOP_WORDS))})\b)"
)
_FEW_CANDIDATES = 3  # of the other kinds; with fewer, phrases count too
_LONGEST_ANSWER = 60  # characters

_WORD = re.compile(r"\w+")
GAP = "___"  # what stands for an answer that was taken out


class Candidate(NamedTuple):
    """An answer in a sentence: characters `start` to `end`, and its kind, a key of `cloze.WH_WORDS` or `measure`."""

    start: int
    end: int
    kind: str


def candidates_in(sentence: str) -> list[Candidate]:
    """Answers to ask for, none overlapping another."""
    found: list[Candidate] = []

    def add(start: int, end: int, kind: str) -> None:
        fits = 0 < end - start <= _LONGEST_ANSWER and content_words(sentence[start:end])
        if fits and not any(start < other.end and other.start < end for other in found):
            found.append(Candidate(start, end, kind))

    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(sentence):
            start, end = match.span()
            if kind == "name":
                words = match[0].split()
                begins = not _WORD.search(sentence[:start])
                is_alone = len(words) == 1 and (begins or match[0] in _TITLES)
                if is_alone or sentence[max(0, start - 2) : start] == ". ":  # the name began before
                    continue
                if begins and words[0].lower() in STOP_WORDS:  # "In Iran": not part of the name
                    start += len(words[0]) + 1
                add(start, end, _kind_of_name(sentence, start, end))
            elif kind == "number" and re.match(r" [a-z]{3,}", sentence[end:]):
                behind = re.match(r" ([a-z]+)", sentence[end:])
                add(start, end, "number" if behind is None or behind[1] in STOP_WORDS else "count")
            else:
                add(start, end, kind)
    if len(found) < _FEW_CANDIDATES:
        for match in _PHRASE.finditer(sentence):
            if not any(word in STOP_WORDS for word in match[1].split()):
                add(match.start(1), match.end(1), "phrase")
    return found


def _kind_of_name(sentence: str, start: int, end: int) -> str:
    name = sentence[start:end]
    if name in _MONTH.split("|"):
        return "month"
    if name in _DAYS.split("|"):
        return "day"
    if _THING.search(name):
        return "thing"
    if _PLACE_NAME.search(name):
        return "place"
    if _PERSON_BEFORE.search(sentence[:start]) or _PERSON_BEHIND.match(sentence[end:]):
        return "person"
    if name.split()[0] in _TITLES:
        return "person"
    if _PLACE.search(sentence[:start]):
        return "place"
    is_adjective = name.endswith(_ADJECTIVE_ENDINGS) and re.match(r" [a-z]", sentence[end:]) is not None
    return "thing" if is_adjective or sentence[:start].endswith(("the ", "The ")) else "name"


def content_words(text: str) -> frozenset[str]:
    """The words of a text, in lower case, without stop words."""
    return frozenset(word for word in map(str.lower, _WORD.findall(text)) if word not in STOP_WORDS and word != GAP)
