"""Runs methods on tasks: every sample once, its result kept as it is made, so that a run that was killed goes on.

The same files, settings and seed give the same results, wall times and memory apart. Leaves out: what the command line
says (`cli`), means over results (`summary`), and pages (`report`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from generative_adapter.config import require
from generative_adapter.evaluation.peak_memory import peak_memory
from generative_adapter.evaluation.results import CHOICE, SCHEMA_VERSION, TEST, QueryResult, ResultLog, SampleResult
from generative_adapter.evaluation.shelf import MethodShelf
from generative_adapter.evaluation.tasks.protocol import Task, TaskSample, score
from generative_adapter.methods.protocol import Wording

CHOSEN_BY = {
    "closed-book": "closed-book",
    "full-context": "full-context-cached",
    "full-context-cached": "full-context-cached",
}
"""Methods that get their best wording of several, and the method by which it is found. A cache changes answers by
rounding at most."""


@dataclass(frozen=True)
class TaskPlan:
    """A task with what it needs to be run.

    Attributes:
        task: what is tested.
        choice: the same kind of task on training data, to choose wordings by; None: the first wording is taken.
        plain_wording: name of the wording for methods that read no prompt with a context; None: the first one.
    """

    task: Task
    choice: Task | None = None
    plain_wording: str | None = None


@dataclass(frozen=True)
class Choice:
    """How a wording was chosen.

    Attributes:
        chosen: name of the wording.
        scores: mean of the main metric of each wording on training data.
        num_queries: behind each mean.
    """

    chosen: str
    scores: Mapping[str, float]
    num_queries: int


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Attributes:
        results: of the test samples, by method and then in the tasks' order.
        choices: by task name and method.
        skipped: what tasks left out, by task name and reason.
        num_kept: results that were there before.
    """

    results: tuple[SampleResult, ...]
    choices: Mapping[str, Mapping[str, Choice]]
    skipped: Mapping[str, Mapping[str, int]]
    num_kept: int


RunProgress = Callable[[str, int, int], None]


@dataclass
class Runner:
    """Runs samples and keeps results.

    Attributes:
        shelf: methods.
        log: what is kept.
        seed: of methods that draw numbers.
        progress: called with what is done at the moment, samples done and samples in all.
    """

    shelf: MethodShelf
    log: ResultLog
    seed: int = 0
    progress: RunProgress | None = None
    num_kept: int = field(default=0, init=False)

    def run(self, names: Sequence[str], plans: Sequence[TaskPlan]) -> Outcome:
        """Every method on every sample of every plan's task.

        Raises:
            DataError: a task or its data can't be used.
            ConfigError: a method can't take a task's samples.
        """
        require(len(names) > 0, "methods is empty; name at least one")
        tests = [tuple(plan.task.samples()) for plan in plans]
        trials = [() if plan.choice is None else tuple(plan.choice.samples()) for plan in plans]
        self._check_names(plans)
        choosers = {chooser for name in names if (chooser := CHOSEN_BY.get(name))}
        num_trials = sum(len(samples) * len(samples[0].wordings) for samples in trials if samples) * len(choosers)
        self._done, self._total = 0, num_trials + len(names) * sum(map(len, tests))
        results: list[SampleResult] = []
        choices: dict[str, dict[str, Choice]] = {}
        found: dict[tuple[str, str], Choice] = {}
        for name in names:
            for plan, samples, trial in zip(plans, tests, trials, strict=True):
                wording = self._plain_wording(plan, samples[0].wordings)
                chooser = CHOSEN_BY.get(name)
                if chooser is not None:
                    wording = samples[0].wordings[0]
                    if trial:
                        key = (chooser, plan.task.name)
                        if key not in found:
                            found[key] = self._choose(chooser, trial, samples[0].wordings)
                        choices.setdefault(plan.task.name, {})[name] = found[key]
                        wording = _named(samples[0].wordings, found[key].chosen)
                results += [self.one(name, wording, plan.task.name, TEST, sample) for sample in samples]
        skipped = {plan.task.name: dict(plan.task.skipped) for plan in plans if plan.task.skipped}
        return Outcome(tuple(results), choices, skipped, self.num_kept)

    def one(self, name: str, wording: Wording, task: str, role: str, sample: TaskSample) -> SampleResult:
        """The result of a method on a sample: the one that is kept, or a new one, which then is."""
        if self.progress is not None:
            self.progress(f"{name}, {task}", self._done, self._total)
        key = self._key(name, wording, task, role, sample)
        result = self.log.get(key)
        if result is None:
            result = self._answered(key, name, wording, task, role, sample)
            self.log.add(result)
        else:
            self.num_kept += 1
        self._done += 1
        if self.progress is not None:
            self.progress(f"{name}, {task}", self._done, self._total)
        return result

    def _answered(
        self, key: str, name: str, wording: Wording, task: str, role: str, sample: TaskSample
    ) -> SampleResult:
        method = self.shelf.get(name, wording)
        torch.manual_seed(self.seed)
        with peak_memory(self.shelf.base.device) as memory:
            state = method.take_in(sample.context)
            started = time.perf_counter()
            answers = method.answer(state, [item.query for item in sample.queries], wording, sample.max_new_tokens)
            seconds = time.perf_counter() - started
        costs = asdict(method.costs(state, answers))
        measured = {
            "contextualizing_seconds": costs.pop("contextualizing_seconds"),
            "answering_seconds": seconds,
            "peak_memory_bytes": memory.bytes,
        }
        judged = score(sample, answers)
        return SampleResult(
            key=key,
            task=task,
            role=role,
            method=name,
            wording=wording.name,
            sample=sample.id,
            context_id=sample.context_id,
            metadata=dict(sample.metadata),
            metrics=sample.metrics,
            costs=costs,
            measured=measured,
            queries=tuple(
                QueryResult(
                    id=item.id,
                    question=item.query.question,
                    references=item.references,
                    answer=answer.text,
                    values=dict(judgement.values),
                    options=item.query.options,
                    option_scores=answer.option_scores,
                    num_prompt_tokens=answer.num_prompt_tokens,
                    num_cached_tokens=answer.num_cached_tokens,
                    num_new_tokens=answer.num_new_tokens,
                    seconds=answer.seconds,
                    metadata=dict(item.metadata),
                )
                for item, answer, judgement in zip(sample.queries, answers, judged, strict=True)
            ),
        )

    def _choose(self, name: str, samples: Sequence[TaskSample], wordings: Sequence[Wording]) -> Choice:
        """The wording with the highest mean of the main metric on training samples; of equal ones the first."""
        scores: dict[str, float] = {}
        num_queries = sum(len(sample.queries) for sample in samples)
        for wording in wordings:
            results = [self.one(name, wording, "training data", CHOICE, sample) for sample in samples]
            scores[wording.name] = sum(q.values[r.metrics[0]] for r in results for q in r.queries) / num_queries
        return Choice(max(scores, key=scores.__getitem__), scores, num_queries)

    def _key(self, name: str, wording: Wording, task: str, role: str, sample: TaskSample) -> str:
        depends_on: Mapping[str, Any] = {
            "schema": SCHEMA_VERSION,
            "task": task,
            "role": role,
            "sample": sample.id,
            "content": sample.content_id,
            "documents": [sample.context.documents, sample.context.examples],
            "metadata": sample.metadata,
            "max_new_tokens": sample.max_new_tokens,
            **self.shelf.identity(name, wording),
        }
        text = json.dumps(depends_on, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]

    def _check_names(self, plans: Sequence[TaskPlan]) -> None:
        names = [plan.task.name for plan in plans]
        require(len(set(names)) == len(names), f"tasks are given twice: {', '.join(names)}; give each once")

    def _plain_wording(self, plan: TaskPlan, wordings: Sequence[Wording]) -> Wording:
        chosen = wordings[0] if plan.plain_wording is None else _named(wordings, plan.plain_wording)
        return replace(chosen, shots=())


def _named(wordings: Sequence[Wording], name: str) -> Wording:
    for wording in wordings:
        if wording.name == name:
            return wording
    known = ", ".join(repr(wording.name) for wording in wordings)
    require(False, f"unknown wording {name!r}; expected one of {known}")
    raise AssertionError
