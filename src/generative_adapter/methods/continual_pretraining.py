"""Continual pretraining: a model learns a context's documents token by token, beside supervised fine-tuning on pairs.

Leaves out: the training loop (`fitting`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from generative_adapter.base_model.prompts import plain_ids, start_ids
from generative_adapter.errors import ConfigError
from generative_adapter.methods.answering import Batching
from generative_adapter.methods.fine_tuning import (
    FineTuned,
    SupervisedFineTuning,
    TunedState,
    default_settings,
    fit_settings,
)
from generative_adapter.methods.fitting import EpochProgress, FitSettings, Sample, fit
from generative_adapter.methods.prompting import context_window
from generative_adapter.methods.protocol import Context, Wording
from generative_adapter.methods.settings import MethodSettings
from generative_adapter.methods.tuned_weights import TunedWeights

CPT = FitSettings(learning_rate=1e-5, max_epochs=8, batch_size=16)


class ContinualPretraining(FineTuned):
    """Next-token loss on a context's documents, beside supervised fine-tuning; per context.

    The paper trains on all test documents and then on the pairs. Here each context is taken in by itself, by default on
    top of the fine-tuned weights, so that the pairs are learnt only once.

    Args:
        weights: what is trained, on which base model.
        wording: of queries, as for `SupervisedFineTuning`.
        sft: supervised fine-tuning of the same weights; None: documents only.
        sft_first: False: the pairs are learnt again after each context's documents, as in the paper.
        settings: None: learning rate 1e-5, batches of 16 documents, 8 epochs (appendix C).
        batching: how many queries run together.
        progress: called with epochs done and epochs at most.

    Raises:
        ConfigError: when `sft` trains other weights.
    """

    def __init__(
        self,
        weights: TunedWeights,
        wording: Wording,
        *,
        sft: SupervisedFineTuning | None = None,
        sft_first: bool = True,
        settings: FitSettings | None = None,
        batching: Batching | None = None,
        progress: EpochProgress | None = None,
    ) -> None:
        super().__init__(weights, wording, batching)
        if sft is not None and sft.weights is not weights:
            raise ConfigError(
                "continual pretraining goes on from fine-tuning of the same weights; give both the same weights object"
            )
        self.name = f"cpt-{weights.form}"
        self.sft = sft
        self.sft_first = sft_first
        self.settings = settings or default_settings(CPT, weights)
        self.progress = progress

    def take_in(self, context: Context) -> TunedState:
        """Weights that have read the context's documents; each is a sample, cut where it doesn't fit the model.

        Raises:
            TrainingError: when there is no token to predict, or the loss is no longer finite.
        """
        before = self.sft.trained() if self.sft is not None and self.sft_first else None
        started = time.perf_counter()
        samples = self._documents(context.documents or (context.text,))
        first = {} if before is None else before.values
        fits = [fit(self.weights, first, samples, self.settings, progress=self.progress)]
        if self.sft is not None and not self.sft_first:
            fits.append(self.sft.fit_from(fits[0].values))
        return TunedState(
            fits[-1].values,
            0.0 if before is None else before.flops,
            sum(each.flops for each in fits),
            time.perf_counter() - started,
            tuple(fits),
        )

    def _documents(self, documents: Sequence[str]) -> list[Sample]:
        tokenizer, window = self.base.tokenizer, context_window(self.base)
        start = start_ids(tokenizer)
        samples = []
        for document in documents:
            ids = plain_ids(tokenizer, document)
            step = max(1, len(ids) if window is None else window - len(start))
            samples += [Sample((*start, *ids[at : at + step])) for at in range(0, len(ids), step)]
        return samples


def build(settings: MethodSettings, sft: SupervisedFineTuning) -> ContinualPretraining:
    """`cpt-lora` or `cpt-full`, on top of `sft-lora` or `sft-full`."""
    return ContinualPretraining(
        sft.weights,
        settings.wording,
        sft=sft,
        settings=fit_settings(f"cpt-{sft.weights.form}", CPT, sft.weights, settings),
        batching=settings.batching,
    )
