"""Questions made from plain text, without labels: a sentence loses an answer and becomes a question for it.

The noisy-cloze variant of unsupervised question answering by cloze translation (Lewis et al. 2019, arXiv:1906.04980,
sections 2.1 to 2.3), by rules alone. Of a sentence

    The mill at Orrin was bought by Bess Quill in 1804.

an answer is taken out ("1804"; `cloze_answers`) and the rest is put into one of three forms (`_worded`):

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

from generative_adapter.data.cloze_answers import GAP, STOP_WORDS, UNIT_WORDS, Candidate, candidates_in, content_words
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

_SHORTEST_SENTENCE, _LONGEST_SENTENCE = 30, 400  # characters
_FEWEST_WORDS = 6
_PROSE_SHARE = 0.22  # of a sentence's words are stop words; English prose has 0.35 to 0.55, tables and code almost none
_NO_PROSE = re.compile(r"[{}<>|=\\\t~^]|\w\(|\w_\w|::|//|->")
_FEWEST_CONTENT_WORDS = 3  # of a question

_CLAUSE_SHARE, _WORDS_SHARE = 0.45, 0.45  # of the questions; the rest are gaps
_CLAUSE_WORDS = (3, 14)  # on each side of the gap
_CLAUSE_DROPOUT = (0.0, 0.1, 0.25)
_WORDS_DROPOUT = 0.35
_WORDS_REACH = 12  # words on each side
_VERBS = ("was", "is", "did", "were", "")
_MARKS = ',;:.!?()[]"“”\u2018'
_PAIRS = ("()", "[]", "“”", '""')


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
    waiting: list[tuple[str, list[Candidate]]] = []
    for sentence in sentences(text):
        if _is_prose(sentence) and (candidates := candidates_in(sentence)):
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
    return any(_is_prose(sentence) and candidates_in(sentence) for sentence in sentences(text))


def _is_prose(sentence: str) -> bool:
    """Whether a sentence is English prose, of a usual length."""
    words = sentence.split()
    is_usual = _SHORTEST_SENTENCE <= len(sentence) <= _LONGEST_SENTENCE and len(words) >= _FEWEST_WORDS
    if not is_usual or _NO_PROSE.search(sentence):
        return False
    return sum(word.lower() in STOP_WORDS for word in words) >= _PROSE_SHARE * len(words)


def _question(sentence: str, candidate: Candidate, rng: random.Random) -> Question | None:
    """A question for one answer, None where too few words are left to ask with."""
    answer = sentence[candidate.start : candidate.end]
    hidden = content_words(answer)
    before, behind = sentence[: candidate.start], sentence[candidate.end :]
    if candidate.kind == "quote":
        before, behind = before[:-1], behind[1:]  # the marks around it
    left = [word for word in before.split() if hidden.isdisjoint(content_words(word))]
    right = [word for word in behind.split() if hidden.isdisjoint(content_words(word))]
    if left and left[0].lower() in STOP_WORDS:
        left[0] = left[0].lower()  # it began the sentence
    wh = rng.choice(UNIT_WORDS[answer.split()[-1]] if candidate.kind == "measure" else WH_WORDS[candidate.kind])
    worded = _worded(left, right, wh, rng)
    if len(content_words(worded) - content_words(wh)) < _FEWEST_CONTENT_WORDS:
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
        in_place = rng.random() < 0.5 or not content_words(behind)
        words = [*left, wh, *right] if in_place else [wh, behind, *left]
    else:
        words = [word.strip(_MARKS) for word in (*left[-_WORDS_REACH:], *right[:_WORDS_REACH])]
        words = [word for word in words if content_words(word) and rng.random() >= _WORDS_DROPOUT]
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
