"""EncoderTraining: the part of a recipe that only generators with an encoder need."""

from __future__ import annotations

from dataclasses import dataclass

from generative_adapter.config import require


@dataclass(frozen=True)
class EncoderTraining:
    """How a generator with an encoder is trained (docs/training.md).

    Attributes:
        passages: contexts drawn from the sources before training; the states that the frozen base model gives them and
            their questions are kept on disk, so every one of them can be trained on many times.
        states_from: folder of another run of the same base model; what it knows of the same passages and questions is
            read there, so it has to stay, and not computed again.
        lookup_layers: blocks whose targets look words up from the start: lookups are learned on frozen states first,
            and their reads say the words they find. Where units take tokens, theirs do so instead.
        lookup_labels: tokens of an answer that are looked up.
        lookup_steps: steps on frozen states; 0: none.
        lookup_questions: questions of such a step.
        lookup_learning_rate: of these steps, falling to a tenth.
        word_weight: weight of saying the word that is looked up, beside finding its token, in these steps.
        position_weight: weight of finding the token of the context that an answer's token is read from, beside saying
            it, in the steps through the base model.
        word_strength: with which the words found are said when the steps through the base model start.
        group_seed: added to the run's seed where groups and kept rows are drawn, so that a run on the passages of
            another sees them in other groups and in another order.
        group_passages: numbers of passages that may share a memory; every step takes one of them, so that memories of
            short and long texts are trained side by side.
        group_shares: how often each of these numbers is taken, relative to the others.
        alike_share: part of the groups whose passages are alike, as the parts of one document are; the others hold any.
        lone_sources: sources of which a group holds one passage at most, counted from 0: those whose questions don't
            say which text they are about ("When is the next meeting?").
        source_shares: how often a group is made around a passage of each source, relative to the others; empty: as
            often as there are passages of it.
        dropped_shares: of each source the part of a pass's questions that counts nothing, those with the largest loss:
            for sources in which many questions have a wrong answer; empty: none of any.
        rows: rows of `row_tokens` tokens of questions in a pass.
        kept_rows: rows of unrelated text in a pass, whose next-token probabilities are to stay.
        kept_weight: weight of the divergence there.
        kept_text_share: part of it that is -log P of the text's own next tokens rather than the divergence from what
            the base model says of them: perplexity on unrelated text falls, where the divergence alone lets it rise.
        repeat_weight: weight of not beginning an answer with a word of its own question, unless the answer holds that
            word.
        question_word_weight: weight of telling a question's words where its answer begins, to keys whose surroundings
            are known (`generator.encoder.surroundings_dim`).
        teacher_share: part of the loss of an answer that is its divergence from what a teacher says who reads the
            passage; the rest is -log P of its tokens, as where the teacher wasn't asked. 0: there is no teacher.
        teacher: a base model with the same tokenizer, as in `base_model` (`scripts/questions/train_reader.py` makes
            one); None: the base model itself, with the passage in its prompt.
        teacher_end: one token that ends the teacher's answers and stands for the end of ours; None: the same ends both.
        teacher_sources: sources whose questions it is asked, counted from 0; empty: all.
        position_steps: steps through the base model over which `position_weight` falls to a tenth.
        dropout: of the encoder's input.
        question_dropout: of the tokens of a question, which are left out of a pass as if they had not been there from
            the lowest adapted block on.
        evaluation_passages: held-out passages of an evaluation, those of the first source first.
        evaluation_group: passages that share a memory in an evaluation: a held-out one and those of the training set
            that are most alike.
    """

    passages: int = 16000
    states_from: str | None = None
    lookup_layers: tuple[int, ...] = (27, 28, 29)
    lookup_labels: int = 4
    lookup_steps: int = 1500
    lookup_questions: int = 48
    lookup_learning_rate: float = 1.5e-4
    word_weight: float = 1.0
    position_weight: float = 0.5
    word_strength: float = 3.0
    group_seed: int = 0
    group_passages: tuple[int, ...] = (3, 8, 16, 32)
    group_shares: tuple[float, ...] = (0.35, 0.4, 0.15, 0.1)
    alike_share: float = 0.5
    lone_sources: tuple[int, ...] = ()
    source_shares: tuple[float, ...] = ()
    dropped_shares: tuple[float, ...] = ()
    rows: int = 12
    kept_rows: int = 2
    kept_weight: float = 1.0
    kept_text_share: float = 0.0
    repeat_weight: float = 0.0
    question_word_weight: float = 0.0
    teacher_share: float = 0.0
    teacher: str | None = None
    teacher_end: str | None = None
    teacher_sources: tuple[int, ...] = ()
    position_steps: int = 500
    dropout: float = 0.0
    question_dropout: float = 0.0
    evaluation_passages: int = 64
    evaluation_group: int = 8

    def __post_init__(self) -> None:
        where = "encoder_training"
        positive = ("passages", "lookup_labels", "lookup_questions", "rows", "position_steps", "evaluation_passages")
        for name in (*positive, "evaluation_group"):
            require(getattr(self, name) > 0, f"{where}.{name} must be positive, got {getattr(self, name)}")
        not_negative = ("lookup_steps", "kept_rows", "kept_weight", "word_weight", "position_weight", "repeat_weight")
        for name in (*not_negative, "question_word_weight"):
            require(getattr(self, name) >= 0, f"{where}.{name} must not be negative, got {getattr(self, name)}")
        require(
            self.lookup_learning_rate > 0,
            f"{where}.lookup_learning_rate must be positive, got {self.lookup_learning_rate}",
        )
        require(len(self.lookup_layers) > 0, f"{where}.lookup_layers is empty; name at least one block")
        for name in ("alike_share", "teacher_share", "kept_text_share"):
            require(0 <= getattr(self, name) <= 1, f"{where}.{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("teacher_sources", "lone_sources"):
            require(
                all(source >= 0 for source in getattr(self, name)),
                f"{where}.{name} must be numbers of sources, from 0 on, got {list(getattr(self, name))}",
            )
        for name in ("dropout", "question_dropout"):
            require(0 <= getattr(self, name) < 1, f"{where}.{name} must lie in [0, 1), got {getattr(self, name)}")
        require(
            not self.source_shares or (min(self.source_shares) >= 0 and sum(self.source_shares) > 0),
            f"{where}.source_shares must be numbers of which none is negative, one a source, got "
            f"{list(self.source_shares)}",
        )
        require(
            all(0 <= share < 1 for share in self.dropped_shares),
            f"{where}.dropped_shares must lie in [0, 1), one a source, got {list(self.dropped_shares)}",
        )
        require(
            len(self.group_passages) == len(self.group_shares) > 0
            and min(self.group_passages) > 0
            and min(self.group_shares) > 0,
            f"{where}.group_passages and group_shares must be as many positive numbers, got "
            f"{list(self.group_passages)} and {list(self.group_shares)}",
        )
