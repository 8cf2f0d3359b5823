"""Training of the paper's form of generator: its steps and held-out evaluation.

Leaves out: what is between the steps (`stepping`), and reading recipes and building things from them (`run`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from generative_adapter.base_model.costs import base_sizes
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import pad_id, separator_ids, start_ids
from generative_adapter.checkpoint import GeneratorCheckpoint
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.training.batches import OBJECTIVES, Batch, ContextItem, assemble, split
from generative_adapter.training.distillation import with_teacher as add_teacher
from generative_adapter.training.held_out import held_out_values, idle_passes
from generative_adapter.training.objectives import GeneratorPass, TokenLosses, count_labels, weighted_loss
from generative_adapter.training.optimizers import build_optimizer
from generative_adapter.training.pass_costs import batches_flops
from generative_adapter.training.processes import Processes
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.sources import ContextSampler
from generative_adapter.training.stepping import Progress, ProgressCallback, SteppedTraining
from generative_adapter.training.whitening import measure_whiteners

logger = logging.getLogger(__name__)


class Trainer(SteppedTraining):
    """Trains one generator for one frozen base model.

    Args:
        recipe: the settings.
        base: the frozen base model.
        generator: the network that is trained, in float32 on the base's device.
        sampler: where contexts come from.
        describe: gives the checkpoint to write for the present state.
        progress_callback: is given every line of metrics.
        processes: those of the run.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        base: BaseModel,
        generator: AdapterGenerator,
        sampler: ContextSampler,
        describe: Callable[[Progress], GeneratorCheckpoint],
        progress_callback: ProgressCallback | None = None,
        processes: Processes | None = None,
    ) -> None:
        super().__init__(recipe, base, describe, progress_callback, processes)
        self.generator = generator
        self.sampler = sampler
        self._pass = self.processes.parallel(
            GeneratorPass(
                base,
                generator,
                recipe.attention,
                recipe.lookup_weight > 0,
                recipe.distillation_top_k,
                recipe.gradient_checkpointing,
            )
        )
        self._flops_of = partial(
            batches_flops,
            base_sizes(base.model),
            recipe.generator,
            generator.targets,
            checkpointing=recipe.gradient_checkpointing,
        )
        self._start_ids = start_ids(base.tokenizer)
        self._separator = separator_ids(base.tokenizer)
        self._weights = {name: getattr(recipe, f"{name}_weight") for name in OBJECTIVES}
        self.optimizer = build_optimizer(recipe, generator, self._whiteners())

    def batches(self, items: Sequence[ContextItem], with_teacher: bool = False) -> list[Batch]:
        """The passes of one step over these contexts.

        Args:
            items: the contexts.
            with_teacher: whether an in-context teacher reads them too, where the recipe asks for one.
        """
        recipe, pad = self.recipe, pad_id(self.base.tokenizer)
        batches = []
        for part in split(items, recipe.micro_batch_tokens):
            batch = assemble(part, pad_id=pad, start_ids=self._start_ids, row_tokens=recipe.row_tokens)
            if with_teacher and recipe.distillation_weight > 0:
                batch = add_teacher(batch, part, self._separator, self._start_ids, pad)
            batches.append(batch)
        return batches

    def _whiteners(self) -> dict[str, Tensor]:
        """Measured on the contexts of the first steps, the same in every process and when a run is resumed."""
        steps = math.ceil(self.recipe.whitening_contexts / self.recipe.contexts_per_step)
        batches = (batch for step in range(steps) for batch in self.batches(self.sampler.step(step)))
        return measure_whiteners(self.base, self.generator, batches)

    def train_step(self, step: int) -> dict[str, float]:
        """Step `step` alone, without logs and checkpoints: its losses, counts and seconds."""
        started = time.perf_counter()
        seconds: dict[str, float] = {}
        with _timed(seconds, "data"):
            items = self.sampler.step(step)
            own = self.processes.share(items, [item.num_tokens for item in items])
            batches = self.batches(own, with_teacher=True)
            counts = self._sum(count_labels(batches))
            shift = self.recipe.generator.value_shift
            num_lookups = sum(int((batch.found_at >= shift).sum()) for batch in batches)
            num_distilled = sum(len(batch.teacher.labels) for batch in batches if batch.teacher is not None)
            num_lookups, num_distilled = self.processes.sums([num_lookups, num_distilled], self.base.device)
        lookups = torch.zeros(2)
        distilled = 0.0
        self.generator.train()
        sums: dict[str, float] = dict.fromkeys(OBJECTIVES, 0.0)
        total = 0.0
        num_idle, num_reads = idle_passes(self.processes, batches)
        passes = [*batches, *batches[:1] * num_idle]
        for number, batch in enumerate(passes, start=1):
            with self.processes.only_last_exchanges(self._pass, number == len(passes)):
                with _timed(seconds, "forward"):
                    result: TokenLosses = self._pass(batch, num_reads)
                    if number > len(batches):  # for the others' sake: nothing of it counts
                        self.processes.backward(0.0 * result.losses.sum())
                        continue
                    loss = weighted_loss(result.losses, batch.objectives, counts, self._weights)
                    if result.lookup_losses is not None and result.lookup_correct is not None:
                        loss = loss + self.recipe.lookup_weight * result.lookup_losses.sum() / max(1, num_lookups)
                        found_here = torch.stack([result.lookup_losses.detach().sum(), result.lookup_correct.sum()])
                        lookups += found_here.cpu()
                    if result.distillation_losses is not None:
                        divergence = result.distillation_losses.sum()
                        loss = loss + self.recipe.distillation_weight * divergence / max(1, num_distilled)
                        distilled += divergence.item()
                total += loss.item()
                for index, name in enumerate(OBJECTIVES):
                    sums[name] += result.losses.detach()[batch.objectives == index].sum().item()
                with _timed(seconds, "backward"):
                    self.processes.backward(loss)
        learning_rate = self.recipe.learning_rate_at(step)
        with _timed(seconds, "exchange"):
            sums = self._sum(sums)
            real = sum(batch.num_real_tokens for batch in batches)
            computed = sum(batch.num_computed_tokens for batch in batches)
            given = [total, real, computed, self._flops_of(batches)]
            total, real, computed, flops = self.processes.sums(given, self.base.device)
        with _timed(seconds, "optimizer"):
            norm = torch.nn.utils.clip_grad_norm_(self.generator.parameters(), self.recipe.gradient_clip).item()
            healthy = math.isfinite(total) and math.isfinite(norm)
            if healthy:
                self.optimizer.set_learning_rate(learning_rate)
                self.optimizer.step()
            self.optimizer.zero_grad()
        self.progress.num_tokens += int(real)
        self.progress.num_computed_tokens += int(computed)
        if self.progress.flops is not None:
            self.progress.flops += flops
        self._note_health(healthy, step, total, norm)
        losses = {f"{name}_loss": sums[name] / counts[name] for name in OBJECTIVES if counts[name]}
        if self.recipe.lookup_weight > 0 and num_lookups:
            found = self.processes.sums(lookups.tolist(), self.base.device)
            losses |= {"lookup_loss": found[0] / num_lookups, "lookup_accuracy": found[1] / num_lookups}
        if num_distilled:
            losses["distillation_loss"] = self.processes.sums([distilled], self.base.device)[0] / num_distilled
        times = {f"{name}_seconds": value for name, value in seconds.items()}
        return {
            "loss": total,
            "gradient_norm": norm,
            "learning_rate": learning_rate,
            "real_tokens": real,
            "computed_tokens": computed,
            **losses,
            **times,
            "step_seconds": time.perf_counter() - started,
        }

    def _sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over all processes, by name."""
        return dict(zip(values, self.processes.sums(list(values.values()), self.base.device), strict=True))

    def evaluate(self) -> dict[str, Any]:
        """Held-out losses of every source, see `held_out_values`, by the source's number and kind."""
        self.generator.eval()
        report: dict[str, Any] = {}
        for index, source in enumerate(self.recipe.sources):
            items = self.sampler.held_out(index, self.recipe.evaluation_contexts)
            if items:
                report[f"{index}-{source.kind}"] = held_out_values(
                    self.base, self.generator, items, self.batches, self.processes, self.recipe.attention
                )
        self.progress.evaluations.append({"step": self.progress.step, **report})
        return report


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
