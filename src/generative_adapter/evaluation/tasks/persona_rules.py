"""The rules that make a question of a persona fact: a pattern of the whole sentence, and what it answers.

Written while looking at the training conversations of Multi-Session Chat. The first rule that fits is taken, so special
ones stand before general ones. Leaves out: which answers are good enough (`persona_questions`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_KIN = (
    "wife|husband|mom|mother|dad|father|sister|brother|son|daughter|boyfriend|girlfriend|fiance|fiancee|partner|"
    "grandmother|grandfather|grandma|grandpa|uncle|aunt|cousin|roommate|best friend|friend|boss"
)
_PET = "dog|cat|puppy|kitten|horse|turtle|bird|parrot|rabbit|hamster|fish|pet|snake|lizard|bunny"
_INSTRUMENT = (
    "guitar|bass guitar|bass|electric guitar|acoustic guitar|piano|drums|violin|viola|cello|flute|saxophone|trumpet|"
    "trombone|harmonica|ukulele|banjo|keyboard|keyboards|clarinet|harp|bagpipes|accordion|mandolin|organ|tuba|fiddle"
)
DIGITS = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12", "thirteen": "13", "fourteen": "14", "fifteen": "15", "twenty": "20",
    "thirty": "30", "forty": "40", "fifty": "50",
}  # fmt: skip
WORDS = {digits: word for word, digits in DIGITS.items()}
_COUNT = "|".join([r"\d+", *DIGITS])


@dataclass(frozen=True)
class Rule:
    """A pattern of a fact and the question it answers.

    Attributes:
        name: of the rule, in results.
        pattern: of the whole fact, without its full stop; the group `a` is the answer.
        question: with `{speaker}` and the pattern's other groups.
        prefix: name of a group that may stand before the answer, such as a preposition ("in Graz" beside "Graz").
    """

    name: str
    pattern: re.Pattern[str]
    question: str
    prefix: str | None = None


def _rule(name: str, pattern: str, question: str, prefix: str | None = None) -> Rule:
    return Rule(name, re.compile(pattern, re.IGNORECASE), question, prefix)


_WANT = "(?:want|would like|would love|hope|plan)"
_NO_TIME = r"(?!years?\b|days?\b|weeks?\b|months?\b|hours?\b|minutes?\b)"
_KIND = r"(?P<k>(?:[\w-]+ ){0,2}[\w-]+?)"
_PLACE = r"(?P<p>in|near|on|at|by|close to|next to|outside|outside of|right outside of)"
RULES = (
    _rule("name", r"my name is (?P<a>.+)", "What is {speaker}'s name?"),
    _rule(
        "pet name",
        rf"my (?P<k>{_PET})(?:'s name is| is (?:named|called)) (?P<a>.+)",
        "What is the name of {speaker}'s {k}?",
    ),
    _rule(
        "pet name",
        rf"i have an? (?:\w+ ){{0,2}}(?P<k>{_PET}) (?:named|called) (?P<a>.+)",
        "What is the name of {speaker}'s {k}?",
    ),
    _rule(
        "kin name",
        rf"my (?P<k>{_KIN})(?:'s name is| is (?:named|called)) (?P<a>.+)",
        "What is the name of {speaker}'s {k}?",
    ),
    _rule(
        "favorite",
        rf"my (?:all[ -]time )?favou?rite {_KIND}(?: of all time)? (?:is|are) (?P<a>.+)",
        "What is {speaker}'s favorite {k}?",
    ),
    _rule(
        "favorite", rf"(?P<a>.+) (?:is|are) my (?:all[ -]time )?favou?rite {_KIND}", "What is {speaker}'s favorite {k}?"
    ),
    _rule(
        "count",
        rf"i have (?P<a>{_COUNT}) (?P<k>(?:[\w-]+ )?{_NO_TIME}[\w-]+s|children|people)",
        "How many {k} does {speaker} have?",
    ),
    _rule("age", rf"i am (?P<a>{_COUNT}|\w+-\w+)(?: years? old)", "How old is {speaker}?"),
    _rule("lives with", r"i (?:currently )?(?:live|am living) with (?P<a>.+)", "With whom does {speaker} live?"),
    _rule(
        "lives",
        rf"i (?:currently |now )?(?:live|am living|reside) {_PLACE} (?P<a>.+)",
        "Where does {speaker} live?",
        "p",
    ),
    _rule("from", r"i am (?:originally )?from (?P<a>.+)", "Where is {speaker} from?"),
    _rule(
        "born",
        r"i was (?:born|born and raised) (?P<p>in|on) (?P<a>(?!(?:the )?(?:early |late )?\d).+)",
        "Where was {speaker} born?",
        "p",
    ),
    _rule("grew up", r"i (?:grew up|was raised) (?P<p>in|on|near) (?P<a>.+)", "Where did {speaker} grow up?", "p"),
    _rule(
        "moving",
        r"i am (?:moving|going to move|planning to move|planning on moving) (?P<p>to) (?P<a>.+)",
        "Where is {speaker} moving?",
        "p",
    ),
    _rule("moved", r"i (?:just |recently )?moved (?P<p>to|from) (?P<a>.+)", "Where did {speaker} move {p}?"),
    _rule("works as", r"i (?:currently )?(?:work|am working|am employed) as (?P<a>.+)", "What does {speaker} work as?"),
    _rule("works for", r"i (?:currently )?(?:work|am working) for (?P<a>.+)", "For whom does {speaker} work?"),
    _rule(
        "works",
        r"i (?:currently )?(?:work|am working|am employed) (?:(?:part|full)[- ]time )?(?P<p>at|in|from) (?P<a>.+)",
        "Where does {speaker} work?",
        "p",
    ),
    _rule("job", r"(?:i have a job|my job is) as (?P<a>.+)", "What does {speaker} work as?"),
    _rule("volunteers", r"i volunteer (?P<p>at|in|for|with) (?P<a>.+)", "Where does {speaker} volunteer?", "p"),
    _rule("teaches", r"i teach (?P<a>.+)", "What does {speaker} teach?"),
    _rule(
        "studies",
        r"i (?:study|studied|am studying|(?:am )?major(?:ing|ed)? in) (?P<a>(?!at\b|in\b|for\b|to\b|abroad\b).+)",
        "What does {speaker} study?",
    ),
    _rule("studies", r"my major is (?P<a>.+)", "What does {speaker} study?"),
    _rule(
        "instrument",
        rf"i (?:can |know how to |also |like to |love to )?play (?:the )?(?P<a>{_INSTRUMENT})",
        "Which instrument does {speaker} play?",
    ),
    _rule("learns", r"i am learning (?:how )?(?:to |about )?(?P<a>.+)", "What is {speaker} learning?"),
    _rule("wants to learn", rf"i {_WANT} to learn (?:how )?(?:to )?(?P<a>.+)", "What does {speaker} want to learn?"),
    _rule("wants to be", rf"i {_WANT} to (?:be|become) (?P<a>an? .+)", "What does {speaker} want to be?"),
    _rule("wants to visit", rf"i {_WANT} to (?:visit|travel to|go to) (?P<a>.+)", "Where does {speaker} want to go?"),
    _rule("speaks", r"i (?:can )?speak (?:fluent )?(?P<a>[A-Z]\w+)", "Which language does {speaker} speak?"),
    _rule("afraid", r"i am (?:afraid|scared|terrified) of (?P<a>.+)", "What is {speaker} afraid of?"),
    _rule("allergic", r"i am allergic to (?P<a>.+)", "What is {speaker} allergic to?"),
    _rule("drives", r"i drive (?P<a>an? .+)", "What does {speaker} drive?"),
    _rule("owns", r"i own (?P<a>.+)", "What does {speaker} own?"),
    _rule("collects", r"i collect (?P<a>.+)", "What does {speaker} collect?"),
    _rule(
        "sells", r"i sell (?P<a>(?!through\b|on\b|at\b|in\b|to\b).+?)(?: for a living)?", "What does {speaker} sell?"
    ),
    _rule("grows", r"i grow (?P<a>(?!up\b|old\b).+)", "What does {speaker} grow?"),
    _rule("used to be", r"i used to (?:be|work as) (?P<a>an? .+)", "What did {speaker} use to be?"),
    _rule("used to play", r"i used to play (?P<a>.+)", "What did {speaker} use to play?"),
    _rule(
        "kin job", rf"my (?P<k>{_KIN}) works (?P<p>as|at|in|for) (?P<a>.+)", "What work does {speaker}'s {k} do?", "p"
    ),
    _rule("kin is", rf"my (?P<k>{_KIN}) (?P<v>is|was) (?P<a>an? [\w-]+(?: [\w-]+)?)", "What {v} {speaker}'s {k}?"),
    _rule("interested", r"i am interested in (?P<a>.+)", "What is {speaker} interested in?"),
    _rule("married for", r"i have been married for (?P<a>.+)", "How long has {speaker} been married?"),
)
