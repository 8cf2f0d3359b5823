"""The settings of one source of training contexts, a part of a recipe. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from generative_adapter.config import require

SOURCE_KINDS = ("facts", "questions", "text", "instructions", "cloze")
_FROM_THE_HUB = ("text", "instructions", "cloze")
SENTENCE_TOKENS = 16  # the least that holds most sentences of which a question can be made


@dataclass(frozen=True)
class SourceConfig:
    """One kind of training context.

    Attributes:
        kind: `facts` (synthetic, made on the fly), `questions` (contexts with questions, windows cut around the answers
            on the fly), `text` (segments of plain text: reconstruction and completion, eq. 5), `instructions` (whole
            contexts with their questions: loss on the response only), `cloze` (runs of paragraphs of plain text, with
            questions made from their sentences, others each time).
        share: part of a step's contexts that come from here; shares are taken relative to their sum.
        paths: local files: JSON Lines, SQuAD JSON, plain text, Parquet; for `facts` texts among whose sentences the
            facts stand.
        dataset: hub id of a data set that is streamed, instead of `paths`; for `text`, `instructions` and
            `cloze`.
        subset: the data set's config name on the hub.
        split: the data set's split.
        revision: branch, tag or commit of the data set on the hub.
        converter: name in `data/converters.py` of what makes records of the rows; None: by data set, else by content.
        max_records: at most so many records are taken; None: all.
        max_tokens: at most so many tokens are taken; None: all.
        packing: `text`: documents are joined, with the end-of-sequence token between them, and cut into segments of
            `context_tokens[1]` tokens.
        num_facts: fewest and most facts in a context of `facts`.
        style: arrangement of the text of `facts` (`plain`, `chat`, ...); None: all, at random.
        attributes: `same` attribute of several things, `distinct` ones, or `mixed`; None: what the style is for.
        num_questions: most questions asked about one context; a `facts` context never has more questions than facts.
        context_tokens: fewest and most tokens of a context; longer ones are cut at a sentence or a token. For `facts`
            with `paths`: about so many of the texts around the facts.
        reconstruction: probability that a context of `facts`, `questions` or `cloze` is also to be reconstructed.
        start_step: the source takes part from this step on.
        end_step: the source takes part before this step; None: to the end.
        held_out_share: part of the records, by hash of their context, that is kept for evaluation and never trained on.
    """

    kind: str
    share: float = 1.0
    paths: tuple[str, ...] = ()
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    converter: str | None = None
    max_records: int | None = None
    max_tokens: int | None = None
    packing: bool = False
    num_facts: tuple[int, ...] = (4, 4)
    style: str | None = None
    attributes: str | None = None
    num_questions: int = 4
    context_tokens: tuple[int, ...] = (1, 512)
    reconstruction: float = 0.0
    start_step: int = 0
    end_step: int | None = None
    held_out_share: float = 0.02

    def __post_init__(self) -> None:
        require(self.kind in SOURCE_KINDS, f"source.kind must be one of {', '.join(SOURCE_KINDS)}, got {self.kind!r}")
        require(self.share > 0, f"source.share must be positive, got {self.share}")
        self._check_data()
        for name, pair in (("num_facts", self.num_facts), ("context_tokens", self.context_tokens)):
            require(
                len(pair) == 2 and 0 < pair[0] <= pair[1],
                f"source.{name} must be [fewest, most], both positive, got {list(pair)}",
            )
        if self.kind == "cloze":
            self._check_cloze()
        require(self.num_questions > 0, f"source.num_questions must be positive, got {self.num_questions}")
        require(0 <= self.reconstruction <= 1, f"source.reconstruction must lie in 0..1, got {self.reconstruction}")
        require(0 <= self.held_out_share < 1, f"source.held_out_share must lie in [0, 1), got {self.held_out_share}")

    def _check_data(self) -> None:
        for name in ("dataset", "subset", "split", "revision", "converter"):
            require(getattr(self, name) != "", f"source.{name} is empty; leave it out or name one")
        from_the_hub = self.kind in _FROM_THE_HUB
        needed = "paths or a dataset" if from_the_hub else "paths"
        require(
            self.dataset is None or from_the_hub,
            f"a source of kind {self.kind!r} reads local files (paths); only "
            f"{', '.join(_FROM_THE_HUB)} take a "
            f"dataset, got {self.dataset!r}",
        )
        require(
            self.kind == "facts" or bool(self.paths) or self.dataset is not None,
            f"a source of kind {self.kind!r} needs {needed}",
        )
        require(
            not self.paths or self.dataset is None,
            f"a source takes either paths or a dataset, got {list(self.paths)} and {self.dataset!r}; make two sources",
        )
        for name in ("subset", "revision"):
            value = getattr(self, name)
            require(
                value is None or self.dataset is not None,
                f"source.{name} belongs to a dataset, but there is none: got {value!r}",
            )
        for name in ("max_records", "max_tokens"):
            value = getattr(self, name)
            require(value is None or value > 0, f"source.{name} must be positive, got {value}")
        require(
            not self.packing or self.kind == "text",
            f"source.packing joins documents of kind 'text', not of {self.kind!r}",
        )

    def _check_cloze(self) -> None:
        require(
            self.max_tokens is None,
            f"source.max_tokens counts tokens, but texts of kind 'cloze' are kept as text; give max_records instead of "
            f"max_tokens: {self.max_tokens}",
        )
        require(
            self.context_tokens[1] >= SENTENCE_TOKENS,
            f"source.context_tokens of kind 'cloze' must reach to {SENTENCE_TOKENS} at least, so that a sentence fits "
            f"in, got {list(self.context_tokens)}",
        )

    def takes_part(self, step: int) -> bool:
        """Whether contexts of step `step` come from here."""
        return self.start_step <= step and (self.end_step is None or step < self.end_step)
