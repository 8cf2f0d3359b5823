"""Running methods on tasks: kept results, killed runs, wordings chosen on training data, keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.checkpoint import save_generator
from generative_adapter.errors import ConfigError, DataError
from generative_adapter.evaluation.results import CHOICE, TEST, ResultLog, SampleResult, read_results
from generative_adapter.evaluation.run_record import begun_run, describe_run, ended_run, read_run, write_run
from generative_adapter.evaluation.runner import Outcome, Runner, TaskPlan
from generative_adapter.evaluation.shelf import MethodShelf
from generative_adapter.evaluation.tasks.protocol import TaskQuery, TaskSample
from generative_adapter.methods.answering import Batching
from generative_adapter.methods.protocol import Answer, Context, Costs, Query, Wording
from generative_adapter.methods.registry import METHODS
from generative_adapter.methods.settings import MethodSettings
from tiny_models import tiny_checkpoint

PAPER = Wording("paper", "{question}?", "{context} {question}?", chat=False)
OTHER = Wording("other", "Q: {question}\nA:", "{context}\n\nQ: {question}\nA:", chat=False)
SHOWN = replace(OTHER, name="other, 1 shots", shots=(("Bo is red.", "Who is red", "Bo"),))


def sample(number: int, text: str, *queries: tuple[str, str]) -> TaskSample:
    asked = tuple(TaskQuery(f"{index}", Query(question), (answer,)) for index, (question, answer) in enumerate(queries))
    return TaskSample(
        f"s{number}", Context(text), asked, (PAPER, OTHER, SHOWN), 4, ("f1", "exact_match"), {"number": number}
    )


SAMPLES = (
    sample(0, "Ada keeps bees.", ("Who keeps bees", "Ada"), ("What does Ada keep", "bees")),
    sample(1, "Cy naps at noon.", ("Who naps", "Cy")),
    sample(2, "Di sings in Ulm.", ("Who sings", "Di"), ("Where does Di sing", "Ulm")),
)


@dataclass(frozen=True)
class Listed:
    """Samples as a task."""

    name: str
    listed: tuple[TaskSample, ...] = SAMPLES
    skipped: Mapping[str, int] = field(default_factory=dict)

    def samples(self) -> Iterator[TaskSample]:
        yield from self.listed


@dataclass
class Knows:
    """Answers rightly in one wording and wrongly in others; counts contexts. Stands for a method of another file."""

    wording: str
    answers: dict[str, str]
    taken_in: list[str] = field(default_factory=list)
    name = "knows"

    def take_in(self, context: Context) -> str:
        self.taken_in.append(context.text)
        return context.text

    def answer(self, state: str, queries: Sequence[Query], wording: Wording, max_new_tokens: int) -> list[Answer]:
        right = wording.name == self.wording
        return [Answer(self.answers[query.question] if right else "wrong") for query in queries]

    def costs(self, state: str, answers: Sequence[Answer]) -> Costs:
        return Costs(training_flops=7.0, stored_floats=3)


@pytest.fixture
def knows(monkeypatch: pytest.MonkeyPatch) -> Knows:
    method = Knows("other", {q.query.question: q.references[0] for s in SAMPLES for q in s.queries})
    monkeypatch.setitem(METHODS, "closed-book", lambda base, settings, built: method)
    return method


def runner(base: BaseModel, folder: Path, *names: str, **settings) -> Runner:
    return Runner(MethodShelf(base, MethodSettings(PAPER, **settings), names), ResultLog(folder))


def without_measurements(results: Sequence[SampleResult]) -> list[SampleResult]:
    return [
        replace(result, measured={}, queries=tuple(replace(query, seconds=0.0) for query in result.queries))
        for result in results
    ]


def test_a_run_gives_every_sample_of_every_method_and_a_second_run_the_same(tiny_llama_base, tmp_path) -> None:
    save_generator(tmp_path / "generator.safetensors", tiny_checkpoint(tiny_llama_base))
    names = ("closed-book", "full-context", "full-context-cached", "generative-adapter", "sft-full", "cpt-full")
    settings = {
        "generator": tmp_path / "generator.safetensors",
        "training_pairs": (("Who is red", "Bo"),),
        "max_epochs": {"sft-full": 1, "cpt-full": 1},
    }
    outcomes = [
        runner(tiny_llama_base, tmp_path / folder, *names, **settings).run(names, [TaskPlan(Listed("t"))])
        for folder in ("first", "second")
    ]
    first = outcomes[0].results
    assert [(r.method, r.sample) for r in first] == [(name, s.id) for name in names for s in SAMPLES]
    assert without_measurements(first) == without_measurements(outcomes[1].results)
    assert all(result.wording == "paper" and result.role == TEST for result in first)
    assert all(result.costs["answering_flops"] > 0 for result in first)
    assert tuple(read_results(tmp_path / "first" / "samples.jsonl")) == first


def test_a_killed_run_goes_on_where_it_was(tiny_llama_base, tmp_path, monkeypatch) -> None:
    names = ("closed-book", "full-context")
    whole = runner(tiny_llama_base, tmp_path / "whole", *names).run(names, [TaskPlan(Listed("t"))])
    killed = runner(tiny_llama_base, tmp_path / "killed", *names)
    add, added = killed.log.add, []

    def add_four(result: SampleResult) -> None:
        if len(added) == 4:
            raise KeyboardInterrupt
        added.append(result)
        add(result)

    monkeypatch.setattr(killed.log, "add", add_four)
    with pytest.raises(KeyboardInterrupt):
        killed.run(names, [TaskPlan(Listed("t"))])
    with (tmp_path / "killed" / "samples.jsonl").open("a") as file:
        file.write('{"schema_version": 1, "key": "half a li')
    resumed = runner(tiny_llama_base, tmp_path / "killed", *names)
    outcome = resumed.run(names, [TaskPlan(Listed("t"))])
    assert outcome.num_kept == 4 and outcome.results[:4] == tuple(added)
    assert without_measurements(outcome.results) == without_measurements(whole.results)
    assert len(list(read_results(tmp_path / "killed" / "samples.jsonl"))) == 6


def test_a_broken_line_that_is_not_the_last_is_told(tmp_path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("{oops\n{}\n")
    with pytest.raises(DataError, match=r"samples.jsonl, line 1: not valid JSON"):
        ResultLog(tmp_path)
    path.write_text('{"schema_version": 2}\n')
    with pytest.raises(DataError, match="schema_version 2, expected 1"):
        ResultLog(tmp_path)
    path.write_text('{"schema_version": 1, "key": "x"}\n')
    with pytest.raises(DataError, match="line 1: no result of this schema"):
        ResultLog(tmp_path)


def test_prompting_gets_the_wording_that_is_best_on_training_data(tiny_llama_base, tmp_path, knows: Knows) -> None:
    names = ("closed-book", "full-context")
    plan = TaskPlan(Listed("t", SAMPLES[:1]), Listed("training", SAMPLES[1:]))
    outcome = runner(tiny_llama_base, tmp_path, *names).run(names, [plan])
    choice = outcome.choices["t"]["closed-book"]
    assert (choice.chosen, choice.scores["other"], choice.num_queries) == ("other", 1.0, 3)
    assert set(choice.scores) == {"paper", "other", "other, 1 shots"} and choice.scores["paper"] == 0
    assert [result.wording for result in outcome.results if result.method == "closed-book"] == ["other"]
    assert [result.role for result in outcome.results] == [TEST, TEST]
    kept = list(read_results(tmp_path / "samples.jsonl"))
    trials = [result for result in kept if result.role == CHOICE]
    assert {(r.method, r.wording, r.sample) for r in trials} == {
        (method, wording, s.id)
        for method in ("closed-book", "full-context-cached")
        for wording in ("paper", "other", "other, 1 shots")
        for s in SAMPLES[1:]
    }
    assert outcome.choices["t"]["full-context"].num_queries == 3


def test_without_training_data_the_first_wording_is_taken(tiny_llama_base, tmp_path, knows: Knows) -> None:
    outcome = runner(tiny_llama_base, tmp_path, "closed-book").run(["closed-book"], [TaskPlan(Listed("t"))])
    assert {result.wording for result in outcome.results} == {"paper"} and not outcome.choices


def test_methods_that_read_no_prompt_get_the_wording_named_for_them(tiny_llama_base, tmp_path, monkeypatch) -> None:
    method = Knows("other", {q.query.question: q.references[0] for s in SAMPLES for q in s.queries})
    monkeypatch.setitem(METHODS, "knows", lambda base, settings, built: method)
    plan = TaskPlan(Listed("t"), plain_wording="other, 1 shots")
    outcome = runner(tiny_llama_base, tmp_path, "knows").run(["knows"], [plan])
    assert {result.wording for result in outcome.results} == {"other, 1 shots"}
    assert outcome.results[0].costs == {
        "training_flops": 7.0,
        "contextualizing_flops": 0.0,
        "answering_flops": 0.0,
        "stored_floats": 3,
        "stored_bytes": 0,
    }
    with pytest.raises(ConfigError, match="unknown wording 'none'; expected one of 'paper'"):
        runner(tiny_llama_base, tmp_path, "knows").run(["knows"], [TaskPlan(Listed("t"), plain_wording="none")])


def test_what_answers_depend_on_is_in_the_key_and_nothing_else(tiny_llama_base, tmp_path, knows: Knows) -> None:
    def run(tasks: str = "t", listed: tuple[TaskSample, ...] = SAMPLES, **settings) -> Outcome:
        return runner(tiny_llama_base, tmp_path, "closed-book", **settings).run(
            ["closed-book"], [TaskPlan(Listed(tasks, listed))]
        )

    assert run().num_kept == 0
    assert run(batching=Batching(1), generator=tmp_path / "other", training_pairs=(("a", "b"),)).num_kept == 3
    assert run("another").num_kept == 0
    fewer = replace(SAMPLES[0], queries=SAMPLES[0].queries[:1])
    assert run(listed=(fewer, *SAMPLES[1:])).num_kept == 2
    longer = replace(SAMPLES[1], max_new_tokens=5)
    assert run(listed=(SAMPLES[0], longer)).num_kept == 1


def test_settings_of_a_method_are_in_its_key(tiny_llama_base, tmp_path) -> None:
    generator = tmp_path / "generator"

    def identities(name: str, **settings) -> str:
        shelf = MethodShelf(tiny_llama_base, MethodSettings(PAPER, generator=generator, **settings), (name,))
        return json.dumps(shelf.identity(name, PAPER), sort_keys=True)

    for name, changed, same in (
        ("generative-adapter", {"task_wording": True}, {"seed": 5}),
        ("full-context", {"max_prompt_tokens": 99}, {"task_wording": True}),
        ("sft-lora", {"training_pairs": (("a", "b"),)}, {"max_prompt_tokens": 99}),
        ("sft-lora", {"learning_rates": {"sft-lora": 1e-3}}, {"learning_rates": {"sft-full": 1e-3}}),
        ("cpt-lora", {"learning_rates": {"sft-lora": 1e-3}}, {"learning_rates": {"k-shot-lora": 1e-3}}),
        ("k-shot-full", {"seed": 5}, {"training_pairs": (("a", "b"),)}),
    ):
        assert identities(name) == identities(name, **same), (name, same)
        assert identities(name) != identities(name, **changed), (name, changed)
    generator.write_bytes(b"one")
    first = identities("generative-adapter"), identities("closed-book")
    generator.write_bytes(b"two")
    second = identities("generative-adapter"), identities("closed-book")
    assert first[0] != second[0] and first[1] == second[1]


def test_runs_in_one_folder_add_up(tiny_llama_base, tmp_path, knows: Knows) -> None:
    def run(names: tuple[str, ...], plans: list[TaskPlan]) -> Outcome:
        described = describe_run(["genadapter", "eval", *names, "a b"], tiny_llama_base, names, {"task": "t"}, 0)
        write_run(tmp_path, begun_run(tmp_path, described))
        outcome = runner(tiny_llama_base, tmp_path, *names).run(names, plans)
        write_run(tmp_path, ended_run(tmp_path, described, outcome))
        return outcome

    first = run(("closed-book", "full-context"), [TaskPlan(Listed("t", skipped={"empty": 2}), Listed("training"))])
    knows.answers = {question: "new" for question in knows.answers}
    second = run(("closed-book",), [TaskPlan(Listed("t", SAMPLES[:2]))])
    record = read_run(tmp_path)
    full = [result.key for result in first.results if result.method == "full-context"]
    assert record["keys"] == full + [result.key for result in second.results]
    assert record["commands"] == [
        "genadapter eval closed-book full-context 'a b'",
        "genadapter eval closed-book 'a b'",
    ]
    assert set(record["choices"]["t"]) >= {"full-context"} and record["skipped"] == {"t": {"empty": 2}}
    assert record["base_model"]["fingerprint"] == tiny_llama_base.fingerprint
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(DataError, match="not an object but a list"):
        read_run(tmp_path)


def test_what_makes_no_run_is_told(tiny_llama_base, tmp_path) -> None:
    with pytest.raises(ConfigError, match="unknown method 'open-book'"):
        runner(tiny_llama_base, tmp_path, "open-book")
    with pytest.raises(ConfigError, match="given twice"):
        runner(tiny_llama_base, tmp_path, "closed-book").run(["closed-book"], [TaskPlan(Listed("t"))] * 2)
