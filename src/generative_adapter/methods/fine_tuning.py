"""Supervised fine-tuning, and what all fine-tuned models share: they answer closed-book, as LoRA or with all weights.

Defaults are those of appendix C, arXiv:2411.05877, for Mistral, and are said to be this project's own where it gives
none. It fine-tunes all weights; LoRA needs larger steps, so its learning rate is own. Leaves out: the training loop
(`fitting`), and training generators.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

from generative_adapter.base_model.costs import base_sizes
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.errors import DataError
from generative_adapter.methods.answering import Batching, answer_prompts, answering_flops
from generative_adapter.methods.fitting import EpochProgress, Fit, FitSettings, Sample, fit
from generative_adapter.methods.kept_fits import KeptFits
from generative_adapter.methods.prompting import answer_form, context_window, prompt_ids
from generative_adapter.methods.protocol import Answer, Context, Costs, Query, Wording
from generative_adapter.methods.settings import MethodSettings, Pair
from generative_adapter.methods.text_losses import text_losses
from generative_adapter.methods.tuned_weights import FullWeights, LoraWeights, TunedWeights, Values

LORA_LEARNING_RATE = 2e-4  # own
SFT = FitSettings(learning_rate=1e-5, max_epochs=4, batch_size=64, patience=1)  # epochs: own


def default_settings(settings: FitSettings, weights: TunedWeights) -> FitSettings:
    """Settings of appendix C for a form of weights: LoRA gets a learning rate of its own."""
    return replace(settings, learning_rate=LORA_LEARNING_RATE) if weights.form == "lora" else settings


@dataclass(frozen=True, eq=False)
class TunedState:
    """Weights that a context, or training pairs, made.

    Attributes:
        values: of the changed weights, on the CPU.
        training_flops: of what was trained before any context.
        flops: of making them from what was there before the context.
        seconds: it took.
        fits: how training went, in order.
    """

    values: Values
    training_flops: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    fits: tuple[Fit, ...] = ()


class FineTuned:
    """What fine-tuned models share: closed-book answers under a state's weights, and costs."""

    def __init__(self, weights: TunedWeights, wording: Wording, batching: Batching | None) -> None:
        self.weights = weights
        self.base = weights.base
        self.wording = replace(wording, shots=())
        self.batching = batching
        self._sizes = base_sizes(weights.base.model)

    def answer(
        self, state: TunedState, queries: Sequence[Query], wording: Wording, max_new_tokens: int
    ) -> list[Answer]:
        """Answers to the queries in the wording's closed prompt, by the fine-tuned model."""
        tokenizer = self.base.tokenizer
        prompts = [prompt_ids(tokenizer, wording, query.question) for query in queries]
        form = answer_form(tokenizer, wording)
        applied: AbstractContextManager[Any] = self.weights.applied(state.values)
        with applied:
            return answer_prompts(self.base, prompts, queries, form, max_new_tokens, batching=self.batching)

    def text_losses(self, state: TunedState, texts: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
        """See `protocol.PredictsText`; of the fine-tuned model."""
        applied: AbstractContextManager[Any] = self.weights.applied(state.values)
        with applied:
            return text_losses(self.base, texts)

    def costs(self, state: TunedState, answers: Sequence[Answer]) -> Costs:
        """Contextualising: forward and backward passes x tokens x epochs, padding and validation included (`fitting`).

        Stored are the changed weights: LoRA's r (d_in + d_out) numbers a linear, or all of the model's.
        """
        return Costs(
            training_flops=state.training_flops,
            contextualizing_flops=state.flops,
            answering_flops=answering_flops(self._sizes, answers, self.weights.adapter_numbers),
            stored_floats=self.weights.num_floats,
            stored_bytes=sum(value.numel() * value.element_size() for value in state.values.values()),
            contextualizing_seconds=state.seconds,
        )

    def pair_samples(self, pairs: Sequence[Pair]) -> list[Sample]:
        """Question and answer as one sequence, of which the answer is learnt; the last tokens that fit."""
        tokenizer, window = self.base.tokenizer, context_window(self.base)
        form = answer_form(tokenizer, self.wording)
        samples = []
        for question, answer in pairs:
            given, learnt = prompt_ids(tokenizer, self.wording, question), form.answer_ids(tokenizer, answer)
            cut = 0 if window is None else max(0, len(given) + len(learnt) - window)
            samples.append(Sample((*given, *learnt)[cut:], len(given) - cut))
        return samples


class SupervisedFineTuning(FineTuned):
    """Fine-tuned once on question-answer pairs of other contexts, without these contexts; the context is not used.

    Args:
        weights: what is trained, on which base model.
        pairs: (question, answer) of training contexts.
        wording: in whose closed prompt they are put, without shots.
        validation: the same of other contexts; the weights of the lowest validation loss are kept.
        settings: None: learning rate 1e-5, batches of 64, stop at the first rise (appendix C), at most 4 epochs (own).
        batching: how many queries run together.
        progress: called with epochs done and epochs at most.
        kept: where trained weights are kept and looked for.

    Raises:
        DataError: when there is no pair.
    """

    def __init__(
        self,
        weights: TunedWeights,
        pairs: Sequence[Pair],
        wording: Wording,
        *,
        validation: Sequence[Pair] = (),
        settings: FitSettings | None = None,
        batching: Batching | None = None,
        progress: EpochProgress | None = None,
        kept: KeptFits | None = None,
    ) -> None:
        super().__init__(weights, wording, batching)
        if not pairs:
            raise DataError("supervised fine-tuning has no question-answer pair; give pairs of training contexts")
        self.name = f"sft-{weights.form}"
        self.pairs = tuple(pairs)
        self.validation = tuple(validation)
        self.settings = settings or default_settings(SFT, weights)
        self.progress = progress
        self.kept = kept
        self._fit: Fit | None = None

    def trained(self) -> Fit:
        """The fine-tuned weights; trains when first called, where none are kept.

        Raises:
            TrainingError: when the loss is no longer finite.
            CheckpointError: when kept weights are damaged.
        """
        if self._fit is None and self.kept is not None:
            self._fit = self.kept.get(self.name, self._depends_on())
        if self._fit is None:
            self._fit = self.fit_from({})
            if self.kept is not None:
                self.kept.put(self.name, self._depends_on(), self._fit)
        return self._fit

    def _depends_on(self) -> dict[str, Any]:
        return {
            "base": self.base.fingerprint,
            "dtype": str(self.base.dtype),
            "weights": self.weights.settings,
            "pairs": self.pairs,
            "validation": self.validation,
            "wording": asdict(self.wording),
            "settings": asdict(self.settings),
        }

    def fit_from(self, start: Values) -> Fit:
        """Weights trained on the pairs from other first values."""
        samples, validation = self.pair_samples(self.pairs), self.pair_samples(self.validation)
        return fit(self.weights, start, samples, self.settings, validation, self.progress)

    def take_in(self, context: Context) -> TunedState:
        """The same weights for every context.

        Raises:
            TrainingError: when the loss of training is no longer finite.
        """
        own = self.trained()
        return TunedState(own.values, own.flops, fits=(own,))

    def costs(self, state: TunedState, answers: Sequence[Answer]) -> Costs:
        """Training once, and nothing for a context: no number is kept of it."""
        return replace(super().costs(state, answers), stored_floats=0, stored_bytes=0)

    def close(self) -> None:
        """Lets go of the trained weights."""
        self._fit = None


def tuned_weights(form: str, base: BaseModel, settings: MethodSettings) -> TunedWeights:
    """The weights that settings ask to be trained, `full` or `lora`."""
    return FullWeights(base) if form == "full" else LoraWeights(base, rank=settings.lora_rank, seed=settings.seed)


def fit_settings(name: str, defaults: FitSettings, weights: TunedWeights, settings: MethodSettings) -> FitSettings:
    """A method's defaults with what the settings say for its name instead."""
    own = {
        "learning_rate": settings.learning_rates.get(name),
        "max_epochs": settings.max_epochs.get(name),
        "batch_size": settings.batch_sizes.get(name),
    }
    given: dict[str, Any] = {field: value for field, value in own.items() if value is not None}
    return replace(default_settings(defaults, weights), seed=settings.seed, **given)


def build(form: str, base: BaseModel, settings: MethodSettings) -> SupervisedFineTuning:
    """`sft-lora` or `sft-full`."""
    weights = tuned_weights(form, base, settings)
    return SupervisedFineTuning(
        weights,
        settings.training_pairs,
        settings.wording,
        validation=settings.validation_pairs,
        settings=fit_settings(f"sft-{form}", SFT, weights, settings),
        batching=settings.batching,
        progress=settings.progress,
        kept=None if settings.kept_fits is None else KeptFits(settings.kept_fits),
    )
