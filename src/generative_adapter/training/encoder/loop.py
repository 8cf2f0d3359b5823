"""The training loop of a generator with an encoder: lookups on frozen states, then passes through the base model.

Leaves out: what is between the steps (`training.stepping`), and preparing states (`preparing`).
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from generative_adapter.base_model.lean_norms import find_plain_norms
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prefix_pass import attention_kernel
from generative_adapter.checkpoint import GeneratorCheckpoint
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.training.encoder.encoding import GroupMemory, group_memories
from generative_adapter.training.encoder.frozen_states import Asked, FrozenStates, word_counts
from generative_adapter.training.encoder.groups import Group, GroupSampler
from generative_adapter.training.encoder.held_out import lookup_sums, means, pass_sums
from generative_adapter.training.encoder.lookups import WordScores, lookup_losses
from generative_adapter.training.encoder.optimizer import average_gradients, make_optimizer
from generative_adapter.training.encoder.passes import PassLosses, pass_losses
from generative_adapter.training.encoder.preparing import lookup_targets
from generative_adapter.training.encoder.question_loss import mean_or_zero, question_loss, weighted_losses
from generative_adapter.training.encoder.question_rows import question_rows
from generative_adapter.training.encoder.repeated_words import own_words
from generative_adapter.training.encoder.starting import set_word_strength
from generative_adapter.training.encoder.surroundings_start import question_codes
from generative_adapter.training.encoder.teacher import TaughtAnswer
from generative_adapter.training.optimizers import CombinedOptimizer
from generative_adapter.training.processes import Processes
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.stepping import Progress, ProgressCallback, SteppedTraining

logger = logging.getLogger(__name__)

_FINAL_LOOKUP_RATE = 0.1
_FILLED = 0.9  # of the rows of a pass
_SUMS = ("real_tokens", "computed_tokens", "questions")  # over all processes, where the others are means
_STRENGTHS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)


class EncoderTrainer(SteppedTraining):
    """Trains one generator with an encoder for one frozen base model.

    Args:
        recipe: the settings.
        base: the frozen base model.
        generator: the network that is trained, in float32 on the base's device.
        states: the passages and what the base model makes of them.
        describe: gives the checkpoint to write for the present state.
        progress_callback: is given every line of metrics.
        processes: those of the run.
        taught: what a teacher says where questions are answered.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        base: BaseModel,
        generator: EncoderGenerator,
        states: FrozenStates,
        describe: Callable[[Progress], GeneratorCheckpoint],
        progress_callback: ProgressCallback | None = None,
        processes: Processes | None = None,
        taught: Mapping[Asked, TaughtAnswer] | None = None,
    ) -> None:
        super().__init__(recipe, base, describe, progress_callback, processes)
        self.generator, self.states = generator, states
        head = base.model.get_input_embeddings()
        assert isinstance(head, nn.Embedding)
        self._embeddings = head.weight.detach().cpu()
        self._settings = recipe.encoder_training
        self._seed = recipe.seed + self._settings.group_seed
        self.sampler = GroupSampler(states, self._embeddings, self._settings, self._seed)
        self._lookup_targets = lookup_targets(recipe, generator)
        self._norms = find_plain_norms(base.model)
        self._own_words = own_words(states) if self._settings.repeat_weight else None
        self._taught = taught
        tells = self._settings.question_word_weight > 0
        self._codes = question_codes(generator, states, self._embeddings) if tells else None
        self._scores: WordScores | None = None
        self.optimizer = self._make_optimizer()

    @property
    def num_steps(self) -> int:
        """Steps of both parts."""
        return self._settings.lookup_steps + self.recipe.num_steps

    @property
    def looks_up(self) -> bool:
        """Whether the next step is one on frozen states."""
        return self.progress.step < self._settings.lookup_steps

    def resume_at(self, step: int) -> dict[str, nn.Parameter]:
        """See `SteppedTraining.resume_at`; the optimiser is that of the part which the step belongs to."""
        self.progress.step = step
        self.optimizer = self._make_optimizer()
        return self._extra()

    def _closes_a_part(self) -> bool:
        return self.progress.step == self._settings.lookup_steps

    def _extra(self) -> dict[str, nn.Parameter]:
        if not self.looks_up or self._scores is None:
            return {}
        return {f"lookups.{name}": parameter for name, parameter in self._scores.named_parameters()}

    def train_step(self, step: int) -> dict[str, float]:
        """Step `step` alone, without logs and checkpoints: its losses, counts and seconds."""
        started = time.perf_counter()
        self.generator.train()
        self.generator.compute_dtype = torch.bfloat16 if self.base.dtype == torch.bfloat16 else torch.float32
        self.generator.encoder.dropout.p = self._settings.dropout
        loss, values = self._lookup_step(step) if self.looks_up else self._pass_step(step)
        loss.backward()
        parameters = self._trained()
        average_gradients(parameters, self.processes)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe.gradient_clip).item()
        total = self.processes.sums([loss.item()], self.base.device)[0] / self.processes.size
        healthy = math.isfinite(total) and math.isfinite(norm)
        learning_rate = self.learning_rate_at(step)
        if healthy:
            self.optimizer.set_learning_rate(learning_rate)
            self.optimizer.step()
        self.optimizer.zero_grad()
        self._note_health(healthy, step, total, norm)
        sums = dict(zip(values, self.processes.sums(list(values.values()), self.base.device), strict=True))
        self.progress.num_tokens += int(sums["real_tokens"])
        self.progress.num_computed_tokens += int(sums["computed_tokens"])
        return {
            "loss": total,
            **{name: value / (1 if name in _SUMS else self.processes.size) for name, value in sums.items()},
            "gradient_norm": norm,
            "learning_rate": learning_rate,
            "step_seconds": time.perf_counter() - started,
        }

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step `step`, from 0, of either part."""
        lookups = self._settings.lookup_steps
        if step >= lookups:
            return self.recipe.learning_rate_at(step - lookups)
        warmed = min(1.0, (step + 1) / max(1, self.recipe.warmup_steps))
        return self._settings.lookup_learning_rate * warmed * (1 - (1 - _FINAL_LOOKUP_RATE) * step / lookups)

    def _memories(self, groups: Sequence[Group]) -> list[GroupMemory]:
        return group_memories(self.generator, self.states, self._embeddings, groups)

    def _lookup_step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        groups = self.sampler.groups(step, self.processes.rank, self._settings.lookup_questions)
        assert self._scores is not None
        found = lookup_losses(
            self.generator, self._scores, self.states, groups, self._memories(groups), self._lookup_targets
        )
        loss = self._settings.word_weight * mean_or_zero(found.words) + mean_or_zero(found.places)
        real = float(self._num_passage_tokens(groups))
        return loss, {
            "real_tokens": real,
            "computed_tokens": real,
            "place_loss": mean_or_zero(found.places).item(),
            "word_loss": mean_or_zero(found.words).item(),
            "found_first": mean_or_zero(found.found_first).item(),
            "said_first": mean_or_zero(found.said_first).item(),
            "questions": float(sum(len(group.asked) for group in groups)),
        }

    def _pass_step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        settings = self._settings
        groups = self.sampler.groups(step, self.processes.rank, self._questions_of_a_pass)
        rng = random.Random(f"kept/{self._seed}/{step}/{self.processes.rank}")
        kept = [rng.choice(self.sampler.train) for _ in range(settings.kept_rows)]
        rows = question_rows(
            self.states, groups, self.recipe.row_tokens, settings.rows, kept, rng, settings.question_dropout
        )
        found = self._pass(rows, self._memories(groups))
        progress = (step - settings.lookup_steps) / settings.position_steps
        position_weight = settings.position_weight * max(0.1, 1 - 0.9 * progress)
        read = self._num_passage_tokens(groups)
        return weighted_losses(found, settings, position_weight), {
            "real_tokens": float(read + (rows.segments > 0).sum()),
            "computed_tokens": float(read + rows.segments.numel()),
            "answer_loss": found.answers.mean().item(),
            "correct": found.correct.float().mean().item(),
            "place_loss": mean_or_zero(found.places).item(),
            "kept_loss": mean_or_zero(found.kept).item(),
            "kept_text_rise": mean_or_zero(found.text).item(),
            **({"repeat_loss": mean_or_zero(found.repeats).item()} if settings.repeat_weight else {}),
            **({"question_word_loss": mean_or_zero(found.words).item()} if self._codes is not None else {}),
            **({"teacher_loss": mean_or_zero(found.taught).item()} if self._taught else {}),
            "questions": float(int(found.question.max()) + 1),
        }

    @property
    def _questions_of_a_pass(self) -> int:
        """About as many as fit into its rows."""
        mean = self.states.num_question_tokens / sum(map(len, self.states.asked))
        return max(1, int(_FILLED * self._settings.rows * self.recipe.row_tokens / mean))

    def _num_passage_tokens(self, groups: Sequence[Group]) -> int:
        return sum(self.states.passages[number].num_tokens for group in groups for number in group.passages)

    def _pass(self, rows: Any, memories: Sequence[GroupMemory]) -> PassLosses:
        with attention_kernel(self.base.model, self.recipe.attention):
            return pass_losses(
                self.base,
                self.generator,
                self.states,
                rows,
                memories,
                self._lookup_targets,
                self._norms,
                self._own_words,
                self._taught,
                self._codes,
            )

    @torch.no_grad()
    def evaluate(self, group_size: int | None = None) -> dict[str, Any]:
        """Values of held-out passages, each among those of the training set that are most alike.

        Of lookups alone up to the last step on frozen states, else through the base model, with as many held-out
        passages as unrelated text.

        Args:
            group_size: passages that share a memory; None: as many as the recipe says.
        """
        self.generator.eval()
        self.generator.compute_dtype = torch.float32
        chosen = self.sampler.held_out[: self._settings.evaluation_passages]
        passages = chosen[self.processes.rank :: self.processes.size]
        size = group_size or self._settings.evaluation_group
        totals: dict[str, float] = {}
        rng = random.Random(0)
        for at in range(0, len(passages), 2):
            groups = [self.sampler.held_out_group(number, size) for number in passages[at : at + 2]]
            memories = self._memories(groups)
            if self.progress.step > self._settings.lookup_steps:
                kept = [rng.choice(self.sampler.held_out) for _ in groups]
                rows = question_rows(self.states, groups, self.recipe.row_tokens, 64, kept, rng)
                values = pass_sums(self._pass(rows, memories))
            else:
                assert self._scores is not None
                values = lookup_sums(
                    lookup_losses(self.generator, self._scores, self.states, groups, memories, self._lookup_targets)
                )
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value
        sums = dict(zip(totals, self.processes.sums(list(totals.values()), self.base.device), strict=True))
        report = means(sums)
        self.progress.evaluations.append({"step": self.progress.step, **report})
        return report

    @torch.no_grad()
    def _begin_next_part(self) -> None:
        """Lets the lookups say what they find, as loudly as gives the least loss, and starts a new optimiser."""
        size = self._settings.evaluation_group
        groups = [self.sampler.held_out_group(number, size) for number in self.sampler.held_out[:24]]
        memories = [each for at in range(0, len(groups), 4) for each in self._memories(groups[at : at + 4])]
        rows = question_rows(self.states, groups, self.recipe.row_tokens, 16)
        losses = []
        for strength in _STRENGTHS:
            set_word_strength(self.generator, self._lookup_targets, strength)
            found = self._pass(rows, memories)
            losses.append(question_loss(found.answers, found.question).item())
            logger.info("word strength %s: answer loss %.3f", strength, losses[-1])
        best = _STRENGTHS[min(range(len(losses)), key=losses.__getitem__)]
        set_word_strength(self.generator, self._lookup_targets, best)
        self._log({"kind": "word_strength", "strengths": list(_STRENGTHS), "losses": losses, "chosen": best})
        self.optimizer = self._make_optimizer()

    def _make_optimizer(self) -> CombinedOptimizer:
        """That of the present part, with the scores of words that steps on frozen states need."""
        if self.looks_up:
            words = WordScores(
                self._embeddings, self.generator.word_proj.cpu(), word_counts(self.states, len(self._embeddings))
            )
            self._scores = words.to(self.base.device)
        return make_optimizer(self.recipe, self.generator, self._trained())

    def _trained(self) -> list[nn.Parameter]:
        """Parameters of the present part: on frozen states neither outputs nor the constant part take part."""
        if not self.looks_up:
            return list(self.generator.parameters())
        generator = self.generator
        own = [*generator.encoder.parameters(), generator.key_proj, generator.gate_proj, generator.gate_bias]
        own += [generator.value_proj, generator.log_ridge]
        if generator.keeps_tokens:
            own += [block.query_proj for block in generator.unit_blocks]
        else:
            own += [generator[target.name].query_proj for target in self._lookup_targets]
        return own + (list(self._scores.parameters()) if self._scores is not None else [])
