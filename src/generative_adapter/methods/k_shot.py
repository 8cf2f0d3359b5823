"""K-shot fine-tuning: a model is trained on a context's demonstrations, with early stopping.

Leaves out: the training loop (`fitting`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.errors import DataError
from generative_adapter.methods.answering import Batching
from generative_adapter.methods.fine_tuning import FineTuned, TunedState, default_settings, fit_settings, tuned_weights
from generative_adapter.methods.fitting import EpochProgress, FitSettings, fit
from generative_adapter.methods.protocol import Context, Wording
from generative_adapter.methods.settings import MethodSettings, Pair
from generative_adapter.methods.tuned_weights import TunedWeights

K_SHOT = FitSettings(learning_rate=5e-6, max_epochs=40, batch_size=4, patience=3)  # batch size: own


class KShotFineTuning(FineTuned):
    """Fine-tuned on a context's demonstrations, as (input, output) pairs.

    Args:
        weights: what is trained, on which base model.
        wording: in whose closed prompt demonstrations are put, without shots.
        validation: other demonstrations of a context's task, for early stopping (the paper: 16 of them); None: of eight
            demonstrations or more the last quarter, of fewer none, and then there is no early stopping.
        settings: None: learning rate 5e-6, at most 40 epochs, stop after three rises (appendix C), batches of 4 (own).
        batching: how many queries run together.
        progress: called with epochs done and epochs at most.
    """

    def __init__(
        self,
        weights: TunedWeights,
        wording: Wording,
        *,
        validation: Callable[[Context], Sequence[Pair]] | None = None,
        settings: FitSettings | None = None,
        batching: Batching | None = None,
        progress: EpochProgress | None = None,
    ) -> None:
        super().__init__(weights, wording, batching)
        self.name = f"k-shot-{weights.form}"
        self.validation = validation
        self.settings = settings or default_settings(K_SHOT, weights)
        self.progress = progress

    def take_in(self, context: Context) -> TunedState:
        """Weights trained on the demonstrations.

        Raises:
            DataError: when the context has no demonstration.
            TrainingError: when the loss is no longer finite.
        """
        if not context.examples:
            raise DataError("k-shot fine-tuning needs demonstrations; this context has no example (input, output)")
        started = time.perf_counter()
        pairs = list(context.examples)
        if self.validation is not None:
            held_out = list(self.validation(context))
        else:
            num_held_out = len(pairs) // 4 if len(pairs) >= 8 else 0
            pairs, held_out = pairs[: len(pairs) - num_held_out], pairs[len(pairs) - num_held_out :]
        done = fit(
            self.weights, {}, self.pair_samples(pairs), self.settings, self.pair_samples(held_out), self.progress
        )
        return TunedState(done.values, 0.0, done.flops, time.perf_counter() - started, (done,))


def build(form: str, base: BaseModel, settings: MethodSettings) -> KShotFineTuning:
    """`k-shot-lora` or `k-shot-full`."""
    weights = tuned_weights(form, base, settings)
    own = fit_settings(f"k-shot-{form}", K_SHOT, weights, settings)
    return KShotFineTuning(weights, settings.wording, settings=own, batching=settings.batching)
