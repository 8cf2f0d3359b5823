"""What every training run does between its steps: time, metrics, evaluations, checkpoints, steps that went wrong.

Leaves out: the steps themselves (`loop` for the paper's form of generator, `encoder.loop` for the one with an encoder).
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.checkpoint import GeneratorCheckpoint
from generative_adapter.errors import TrainingError
from generative_adapter.training.metrics import append_line, finite_values, mean_values
from generative_adapter.training.optimizers import CombinedOptimizer
from generative_adapter.training.processes import Processes
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.state import save_checkpoint

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 10
METRICS_FILE = "metrics.jsonl"
ProgressCallback = Callable[[Mapping[str, Any]], None]


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint.

    `flops` are operations of all training steps of all processes, by the formulas of `pass_costs`, those of the initial
    generator included where its file tells them; None: not recorded from the start.
    """

    step: int = 0
    seconds: float = 0.0
    num_tokens: int = 0
    num_computed_tokens: int = 0
    flops: float | None = 0.0
    num_skipped: int = 0
    skipped_in_a_row: int = 0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    recent: list[dict[str, float]] = field(default_factory=list)  # steps since the last line of metrics


class SteppedTraining(ABC):
    """A run in steps.

    Args:
        recipe: the settings.
        base: the frozen base model.
        describe: gives the checkpoint to write for the present state.
        progress_callback: is given every line of metrics.
        processes: those of the run.
    """

    optimizer: CombinedOptimizer

    def __init__(
        self,
        recipe: TrainingRecipe,
        base: BaseModel,
        describe: Callable[[Progress], GeneratorCheckpoint],
        progress_callback: ProgressCallback | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.recipe = recipe
        self.base = base
        self.progress = Progress()
        self.processes = processes or Processes(recipe.device)
        self._describe = describe
        self._callback = progress_callback
        self._output = Path(recipe.output)

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return self.recipe.num_steps

    @abstractmethod
    def train_step(self, step: int) -> dict[str, float]:
        """Step `step` alone, without logs and checkpoints: its losses, counts and seconds."""

    @abstractmethod
    def evaluate(self) -> dict[str, Any]:
        """Held-out values of the present state."""

    def resume_at(self, step: int) -> dict[str, nn.Parameter]:
        """Readies the optimiser for a checkpoint of that step; gives the parameters beside the generator's."""
        self.progress.step = step
        return self._extra()

    def run(self, max_seconds: float | None = None) -> str:
        """Trains until all steps are done or `max_seconds` have passed in this call; writes a checkpoint at the end.

        Returns:
            `finished` or `out_of_time`.

        Raises:
            TrainingError: after ten steps in a row whose loss or gradient was not finite.
        """
        recipe = self.recipe
        started = last_checkpoint = time.monotonic()
        before = self.progress.seconds
        while self.progress.step < self.num_steps:
            if max_seconds is not None and self._agree(time.monotonic() - started >= max_seconds):
                self._checkpoint()
                return "out_of_time"
            self.progress.recent.append(finite_values(self.train_step(self.progress.step)))
            self.progress.step += 1
            self.progress.seconds = before + time.monotonic() - started
            done = self.progress.step == self.num_steps
            closes = done or self._closes_a_part()
            if self.progress.step % recipe.log_steps == 0 or closes:
                self._log(self._training_line())
                self.progress.recent = []
            if closes or (recipe.evaluation_steps and self.progress.step % recipe.evaluation_steps == 0):
                self._log({"kind": "evaluation", "step": self.progress.step, **self.evaluate()})
            if closes and not done:
                self._begin_next_part()
            if time.monotonic() - last_checkpoint >= recipe.checkpoint_seconds or closes:
                self._checkpoint()
                last_checkpoint = time.monotonic()
        return "finished"

    def _extra(self) -> dict[str, nn.Parameter]:
        """Parameters that only training needs at present, by name."""
        return {}

    def _closes_a_part(self) -> bool:
        """Whether the step just done is the last one of a part of the run that others follow."""
        return False

    def _begin_next_part(self) -> None:
        """Readies everything for it; a run of one part never gets here."""
        raise NotImplementedError

    def _agree(self, wish: bool) -> bool:
        """Whether any process wishes so; the same for all."""
        return self.processes.sums([float(wish)], self.base.device)[0] > 0

    def _note_health(self, healthy: bool, step: int, loss: float, norm: float) -> None:
        if healthy:
            self.progress.skipped_in_a_row = 0
            return
        self.progress.num_skipped += 1
        self.progress.skipped_in_a_row += 1
        logger.warning("step %d skipped: loss %s, gradient norm %s", step, loss, norm)
        if self.progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row had a non-finite loss or gradient, the last is step {step} "
                f"(loss {loss}, gradient norm {norm}); lower learning_rate or scale and resume from the last checkpoint"
            )

    def _checkpoint(self) -> None:
        if not self.processes.is_first:
            return
        described, progress = self._describe(self.progress), vars(self.progress)
        keep = self.recipe.keep_checkpoints
        path = save_checkpoint(self._output, described, self.optimizer, progress, keep, self._extra())
        logger.info("checkpoint %s", path)

    def _training_line(self) -> dict[str, Any]:
        done = self.progress
        return {
            "kind": "training",
            "step": done.step,
            "num_steps": self.num_steps,
            **mean_values(done.recent),
            "num_tokens": done.num_tokens,
            "num_skipped": done.num_skipped,
            "seconds": done.seconds,
            "seconds_left": (self.num_steps - done.step) * done.seconds / max(1, done.step),
        }

    def _log(self, line: dict[str, Any]) -> None:
        if not self.processes.is_first:
            return
        append_line(self._output / METRICS_FILE, line)
        if self._callback is not None:
            self._callback(line)
