"""Needle in a haystack: a made-up fact hidden at some depth of a long text that has nothing to do with it.

The fact is drawn from the held-out names, values and wordings of `data.facts`, so neither a base model nor a generator
has seen it. The filler is a file's documents (`data.records`) or, without a file, made-up facts of the training side
about other entities: a text of needles, in which a fact must be told from many like it. For one seed and length the
needle and the filler are the same at every depth; only the place differs. Leaves out: how text is cut to a length
(`haystack`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from generative_adapter.config import require
from generative_adapter.data.facts_sampling import Fact, sample_facts, side_of
from generative_adapter.data.facts_vocabulary import vocabulary
from generative_adapter.data.facts_wording import question, statement
from generative_adapter.data.records import Question, read_records
from generative_adapter.evaluation.tasks.document_qa import MAX_NEW_TOKENS, METRICS, WORDINGS, with_shots
from generative_adapter.evaluation.tasks.haystack import Haystack, make_haystack, synthetic_filler, words_of
from generative_adapter.evaluation.tasks.protocol import TaskQuery, TaskSample
from generative_adapter.methods.protocol import Context, Query

SPLIT = "held_out"
SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Filler:
    """What needles are hidden in.

    Attributes:
        name: in results.
        documents: texts; none: made-up facts, drawn by each seed.
    """

    name: str = SYNTHETIC
    documents: tuple[str, ...] = ()


def read_filler(path: Path) -> Filler:
    """The documents of a file as filler, in any format that `data.records` reads; their questions are not used.

    Raises:
        DataError: the file can't be used; the message names file and line.
        MissingDependencyError: it is compressed or Parquet, and the package for that is not installed.
    """
    path = Path(path)
    return Filler(path.name.split(".", 1)[0], tuple(record.context for record in read_records(path)))


@dataclass(frozen=True)
class Needle:
    """Needles over lengths, depths, numbers of them and seeds, one sample each: the task (`protocol.Task`).

    With n needles in a text, needle i stands at depth d + i / n, less one where that is above one, so that they are
    spread over the text; each is asked for by a query of its own, and the query's metadata has its own depth.

    Attributes:
        count_tokens: number of tokens of a text.
        lengths: tokens of the whole context, needles included.
        depths: 0: before all filler, 1: behind it; the nearest sentence boundary is taken.
        num_needles: how many are hidden in a text.
        seeds: each draws needles and filler of its own.
        filler: the text around them.
        shots: answered queries of other contexts; each wording stands once more with them.
    """

    count_tokens: Callable[[str], int]
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    num_needles: tuple[int, ...] = (1,)
    seeds: tuple[int, ...] = (0,)
    filler: Filler = Filler()
    shots: tuple[tuple[str, str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("lengths", "depths", "num_needles", "seeds"):
            values = getattr(self, name)
            require(
                len(values) > 0 and len(set(values)) == len(values),
                f"needle {name} must be different and at least one, got {list(values)}",
            )
        require(min(self.lengths) > 0, f"needle lengths must be positive, got {list(self.lengths)}")
        require(min(self.num_needles) > 0, f"num_needles must be positive, got {list(self.num_needles)}")
        require(all(0 <= depth <= 1 for depth in self.depths), f"depths must lie in 0..1, got {list(self.depths)}")

    @property
    def name(self) -> str:
        """`needle/` and the filler's name."""
        return f"needle/{self.filler.name}"

    @property
    def skipped(self) -> Mapping[str, int]:
        """Nothing is."""
        return {}

    def samples(self) -> Iterator[TaskSample]:
        """One sample a length, number of needles, seed and depth, in this order.

        Raises:
            ConfigError: a length has no room for its needles.
            DataError: the filler is shorter than a length.
        """
        for length in self.lengths:
            for number in self.num_needles:
                for seed in self.seeds:
                    needles = _needles(seed, number)
                    haystack = self._haystack(length, seed, needles)
                    for depth in self.depths:
                        yield self._sample(length, seed, depth, needles, haystack)

    def _haystack(self, length: int, seed: int, needles: tuple[_Needle, ...]) -> Haystack:
        count = self.count_tokens
        num_hidden = count(" ".join(needle.statement for needle in needles))
        require(
            num_hidden <= length,
            f"{len(needles)} needles take {num_hidden} tokens, more than the {length} of their context; give longer "
            "contexts or fewer needles",
        )
        documents = self.filler.documents or synthetic_filler(2 * length, count, seed)
        return make_haystack(
            documents,
            length - num_hidden,
            count,
            seed=seed,
            without=[phrase for needle in needles for phrase in needle.telling],
            name=f"the filler {self.filler.name!r}",
        )

    def _sample(
        self, length: int, seed: int, depth: float, needles: tuple[_Needle, ...], haystack: Haystack
    ) -> TaskSample:
        depths = [_spread_depth(depth, index, len(needles)) for index in range(len(needles))]
        places = [haystack.boundary(own) for own in depths]
        pairs = [(place, needle.statement) for place, needle in zip(places, needles, strict=True)]
        text = haystack.with_needles(pairs)
        total = max(1, haystack.starts[-1])
        queries = []
        for index, (needle, own, place) in enumerate(zip(needles, depths, places, strict=True), 1):
            reached = round(haystack.starts[place] / total, 4)
            asked = Query(needle.question.question)
            queries.append(TaskQuery(f"{index}", asked, needle.question.answers, {"depth": own, "reached": reached}))
        return TaskSample(
            id=f"{self.name}/{length}/{len(needles)}/{seed}/{depth:g}",
            context=Context(text),
            queries=tuple(queries),
            wordings=with_shots(WORDINGS, self.shots),
            max_new_tokens=MAX_NEW_TOKENS,
            metrics=METRICS,
            metadata={
                "context_tokens": length,
                "num_tokens": self.count_tokens(text),
                "depth": depth,
                "num_needles": len(needles),
                "seed": seed,
                "cluster": f"seed {seed}",
            },
        )


@dataclass(frozen=True)
class _Needle:
    """A fact in words, how it is asked for, and the phrases that would tell of it elsewhere."""

    statement: str
    question: Question
    telling: tuple[tuple[str, ...], ...]


def _needles(seed: int, number: int) -> tuple[_Needle, ...]:
    draw = random.Random(f"{seed}/needles/{number}")
    side = side_of(SPLIT)
    facts = sample_facts(draw, number, side)
    return tuple(
        _Needle(statement(draw, fact, side.templates), question(draw, fact, side.templates), _telling(fact))
        for fact in facts
    )


def _telling(fact: Fact) -> tuple[tuple[str, ...], ...]:
    names = sorted(vocabulary().core_words(fact.entity.name))
    return tuple(tuple(words_of(text)) for text in (*names, fact.value))


def _spread_depth(depth: float, index: int, number: int) -> float:
    own = depth + index / number
    return round(own - 1 if own > 1 else own, 6)
