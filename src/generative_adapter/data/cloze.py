"""Questions made from plain text, without labels: a sentence loses an answer and becomes a question for it.

The noisy-cloze variant of unsupervised question answering by cloze translation (Lewis et al. 2019, arXiv:1906.04980,
sections 2.1 to 2.3), by rules alone. Of a sentence

    The mill at Orrin was bought by Bess Quill in 1804.

an answer is taken out ("1804"; `_candidates`) and the rest is put into one of three forms (`_worded`):

    clause      some words around the gap, some of them dropped; a question word in the gap or at the front
                "Mill Orrin was bought by Bess Quill in what year?"
    words       content words, some dropped, perhaps from another one on
                "When was Bess Quill mill Orrin bought?"
    gap         "The mill at Orrin was bought by Bess Quill in ___."

The question word fits the kind of answer: `WH_WORDS`. What is not English prose (tables, code, other languages) has few
function words and gives few questions or none. Leaves out: parsing and named-entity recognition, so names are words
with capitals and some questions are odd; which contexts are drawn (`training.passages`).
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from generative_adapter.data.paragraphs import sentences
from generative_adapter.data.rows import Question

# Kind of an answer -> what may ask for it. A measure ("12 miles") asks by its unit, `UNIT_WORDS`.
WH_WORDS: dict[str, tuple[str, ...]] = {
    "year": ("what year", "which year", "when"),
    "date": ("when", "what date", "on what day"),
    "day": ("when", "what day", "which day"),
    "month": ("when", "what month", "which month"),
    "decade": ("when", "what decade", "in which decade"),
    "time": ("when", "what time", "at what time"),
    "money": ("how much", "how much money", "what amount"),
    "percentage": ("what percentage", "how much", "what percent"),
    "number": ("what number", "which number", "how many"),
    "count": ("how many",),
    "person": ("who", "who", "which person"),
    "place": ("where", "what place", "which place", "what"),
    "name": ("what", "which", "who"),
    "thing": ("what", "which"),
    "quote": ("what", "what phrase", "which words"),
    "phrase": ("what", "what", "which"),
}

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

_SHORTEST_SENTENCE, _LONGEST_SENTENCE = 30, 400  # characters
_FEWEST_WORDS = 6
_PROSE_SHARE = 0.22  # of a sentence's words are stop words; English prose has 0.35 to 0.55, tables and code almost none
_NO_PROSE = re.compile(r"[{}<>|=\\\t~^]|\w\(|\w_\w|::|//|->")
_FEWEST_CONTENT_WORDS = 3  # of a question

_WORD = re.compile(r"\w+")
_CLAUSE_SHARE, _WORDS_SHARE = 0.45, 0.45  # of the questions; the rest are gaps
_CLAUSE_WORDS = (3, 14)  # on each side of the gap
_CLAUSE_DROPOUT = (0.0, 0.1, 0.25)
_WORDS_DROPOUT = 0.35
_WORDS_REACH = 12  # words on each side
_VERBS = ("was", "is", "did", "were", "")
_MARKS = ',;:.!?()[]"“”\u2018'
_PAIRS = ("()", "[]", "“”", '""')
GAP = "___"


class _Candidate(NamedTuple):
    """An answer in a sentence: characters `start` to `end`, and a key of `WH_WORDS`."""

    start: int
    end: int
    kind: str


def cloze_questions(text: str, rng: random.Random, max_questions: int) -> list[Question]:
    """Questions about a text, each made from one of its sentences.

    Every answer stands in the text word for word, and its words, stop words apart, stand nowhere in its question. No
    answer is asked for twice in one sentence, and a sentence is asked about again only when all others have been.

    Args:
        text: any text; what is no English prose in it is passed over.
        rng: decides sentences, answers and wordings; the same state gives the same questions.
        max_questions: at most so many.

    Returns:
        The questions, in random order; none where no sentence holds an answer to ask for.
    """
    waiting: list[tuple[str, list[_Candidate]]] = []
    for sentence in sentences(text):
        if _is_prose(sentence) and (candidates := _candidates(sentence)):
            rng.shuffle(candidates)
            waiting.append((sentence, candidates))
    rng.shuffle(waiting)
    questions: list[Question] = []
    while waiting and len(questions) < max_questions:
        sentence, candidates = waiting.pop(0)
        question = _question(sentence, candidates.pop(), rng)
        if question is not None and question.answers[0] in text:
            questions.append(question)
        if candidates:
            waiting.append((sentence, candidates))
    return questions


def can_be_asked(text: str) -> bool:
    """Whether any sentence of a text holds an answer to ask for."""
    return any(_is_prose(sentence) and _candidates(sentence) for sentence in sentences(text))


def _is_prose(sentence: str) -> bool:
    """Whether a sentence is English prose, of a usual length."""
    words = sentence.split()
    is_usual = _SHORTEST_SENTENCE <= len(sentence) <= _LONGEST_SENTENCE and len(words) >= _FEWEST_WORDS
    if not is_usual or _NO_PROSE.search(sentence):
        return False
    return sum(word.lower() in STOP_WORDS for word in words) >= _PROSE_SHARE * len(words)


def _candidates(sentence: str) -> list[_Candidate]:
    """Answers to ask for, none overlapping another."""
    found: list[_Candidate] = []

    def add(start: int, end: int, kind: str) -> None:
        fits = 0 < end - start <= _LONGEST_ANSWER and _content(sentence[start:end])
        if fits and not any(start < other.end and other.start < end for other in found):
            found.append(_Candidate(start, end, kind))

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


def _question(sentence: str, candidate: _Candidate, rng: random.Random) -> Question | None:
    """A question for one answer, None where too few words are left to ask with."""
    answer = sentence[candidate.start : candidate.end]
    hidden = _content(answer)
    before, behind = sentence[: candidate.start], sentence[candidate.end :]
    if candidate.kind == "quote":
        before, behind = before[:-1], behind[1:]  # the marks around it
    left = [word for word in before.split() if hidden.isdisjoint(_content(word))]
    right = [word for word in behind.split() if hidden.isdisjoint(_content(word))]
    if left and left[0].lower() in STOP_WORDS:
        left[0] = left[0].lower()  # it began the sentence
    wh = rng.choice(UNIT_WORDS[answer.split()[-1]] if candidate.kind == "measure" else WH_WORDS[candidate.kind])
    worded = _worded(left, right, wh, rng)
    if len(_content(worded) - _content(wh)) < _FEWEST_CONTENT_WORDS:
        return None
    return Question(worded, (answer,))


def _worded(left: list[str], right: list[str], wh: str, rng: random.Random) -> str:
    """The words around an answer as a question: a clause, content words or a gap."""
    form = rng.random()
    if form >= _CLAUSE_SHARE + _WORDS_SHARE:
        gap = re.sub(r" (?=[,;:.!?)])", "", " ".join([*left, GAP, *right]))
        return gap[:1].upper() + gap[1:]
    if form < _CLAUSE_SHARE:
        dropout = rng.choice(_CLAUSE_DROPOUT)
        left = [word for word in left[-rng.randint(*_CLAUSE_WORDS) :] if rng.random() >= dropout]
        right = [word for word in right[: rng.randint(*_CLAUSE_WORDS)] if rng.random() >= dropout]
        behind = " ".join(right).strip(" ,;:.!?)]")
        in_place = rng.random() < 0.5 or not _content(behind)
        words = [*left, wh, *right] if in_place else [wh, behind, *left]
    else:
        words = [word.strip(_MARKS) for word in (*left[-_WORDS_REACH:], *right[:_WORDS_REACH])]
        words = [word for word in words if _content(word) and rng.random() >= _WORDS_DROPOUT]
        if words and rng.random() < 0.5:
            turn = rng.randrange(len(words))
            words = words[turn:] + words[:turn]
        words = [wh, "" if wh.startswith("how") else rng.choice(_VERBS), *words]
    question = " ".join(word for word in words if word)
    for opening, closing in _PAIRS:
        if question.count(opening) != question.count(closing) or (opening == closing and question.count(opening) % 2):
            question = question.replace(opening, "").replace(closing, "")
    question = re.sub(r"\s+(?=[,;:.!?)]|['\u2019]s\b)", "", question).strip(" ,;:.!?\u2013-")
    question = re.sub(r"\b([Ww]ho)['\u2019]s\b", r"\1se", question)
    return question[:1].upper() + question[1:] + "?"


def _content(text: str) -> frozenset[str]:
    """The words of a text, in lower case, without stop words."""
    return frozenset(word for word in map(str.lower, _WORD.findall(text)) if word not in STOP_WORDS and word != GAP)
