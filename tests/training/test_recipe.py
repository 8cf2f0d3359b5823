"""Recipes: the shipped files, messages for mistakes, overrides, the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from generative_adapter.errors import ConfigError
from generative_adapter.training.recipe import TrainingRecipe, load_recipe
from generative_adapter.training.source_config import SourceConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
FACTS = (SourceConfig("facts"),)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.yaml"
    path.write_text(
        "output: run\nnum_steps: 20\nsources:\n- {kind: facts, share: 2}\n- {kind: text, paths: [a.jsonl]}\n"
        "generator: {state_dim: 8, rank: 8}\n"
    )
    return path


def test_there_are_shipped_recipes() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert Path(recipe.output).name == path.stem
    assert any(source.start_step == 0 for source in recipe.sources)
    assert not any("/test/" in file or "dev-" in file or "valid-" in file for s in recipe.sources for file in s.paths)


def test_values_and_defaults(plain: Path) -> None:
    recipe = load_recipe(plain)
    assert (recipe.num_steps, recipe.generator.state_dim, recipe.generator.scale) == (20, 8, 1 / 16)
    assert [source.kind for source in recipe.sources] == ["facts", "text"]
    assert recipe.sources[0].share == 2.0 and isinstance(recipe.sources[0].share, float)
    assert recipe.sources[1].paths == ("a.jsonl",)
    assert recipe.base_model == "embedded"


def test_data_sets_of_the_hub(plain: Path) -> None:
    source = "{kind: text, dataset: a/b, subset: en, revision: v2, max_tokens: 1000, packing: true}"
    recipe = load_recipe(plain, [f"sources.1={source}", "num_epochs=2", "cache=tokens", "gradient_checkpointing=true"])
    text = recipe.sources[1]
    assert (text.dataset, text.subset, text.split, text.revision) == ("a/b", "en", "train", "v2")
    assert (text.paths, text.max_tokens, text.max_records, text.packing) == ((), 1000, None, True)
    assert (recipe.num_epochs, recipe.cache, recipe.gradient_checkpointing) == (2.0, "tokens", True)
    assert load_recipe(plain).num_epochs is None


def test_overrides(plain: Path) -> None:
    overrides = [
        "learning_rate=1e-3",
        "sources.1.share=3",
        "sources.0.num_facts=[2, 5]",
        "generator.normalization=svd",
        "prompt.question=Q {question} A",
        "output=a=b",
        "initial_generator=null",
    ]
    recipe = load_recipe(plain, overrides)
    assert recipe.learning_rate == 0.001
    assert recipe.sources[1].share == 3.0
    assert recipe.sources[0].num_facts == (2, 5)
    assert recipe.generator.normalization == "svd"
    assert recipe.prompt.question == "Q {question} A"
    assert recipe.output == "a=b"
    assert recipe.initial_generator is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lerning_rate=1", "did you mean 'learning_rate'"),
        ("generator.rnk=1", "generator: unknown setting 'rnk'; did you mean 'rank'"),
        ("sources.0.shares=1", "did you mean 'share'"),
        ("sources.2.share=1", "index below 2"),
        ("sources.first.share=1", "index below 2"),
        ("sources.7={kind: facts}", "index below 2"),
        ("num_steps.x=1", "'num_steps' holds no settings"),
        ("num_steps", "must look like a.b=value"),
        ("=3", "must look like a.b=value"),
        ("output=[1", "no YAML value"),
        ("num_steps=many", "num_steps: expected int, got 'many'"),
        ("num_steps=true", "num_steps: expected int"),
        ("learning_rate=fast", "learning_rate: expected float"),
        ("learning_rate=0", "learning_rate must be positive"),
        ("sources=facts", "sources: expected a list"),
        ("sources=[facts]", "expected a mapping of settings"),
        ("sources=[]", "sources is empty"),
        ("sources.0.kind=fact", "source.kind must be one of facts, questions, text, instructions, cloze"),
        ("sources.0.num_facts=[3, 2]", "num_facts must be [fewest, most]"),
        ("sources.1.paths=[]", "'text' needs paths or a dataset"),
        ("sources.1={kind: instructions}", "'instructions' needs paths or a dataset"),
        ("sources.1={kind: cloze}", "'cloze' needs paths or a dataset"),
        ("sources.1={kind: cloze, dataset: a/b, max_tokens: 9}", "give max_records instead of max_tokens: 9"),
        ("sources.1={kind: cloze, dataset: a/b, context_tokens: [1, 15]}", "must reach to 16 at least"),
        ("sources.1={kind: cloze, dataset: a/b, num_questions: 0}", "num_questions must be positive"),
        ("sources.1={kind: cloze, dataset: a/b, packing: true}", "not of 'cloze'"),
        ("sources.1={kind: questions}", "'questions' needs paths"),
        ("sources.1={kind: questions, dataset: rajpurkar/squad}", "only text, instructions, cloze take a dataset"),
        ("sources.0.dataset=rajpurkar/squad", "'facts' reads local files (paths)"),
        ("sources.1.dataset=a/b", "either paths or a dataset, got ['a.jsonl'] and 'a/b'"),
        ("sources.1.dataset=''", "source.dataset is empty"),
        ("sources.1.split=''", "source.split is empty"),
        ("sources.1.subset=en", "source.subset belongs to a dataset"),
        ("sources.1.revision=main", "source.revision belongs to a dataset"),
        ("sources.1.max_records=0", "source.max_records must be positive, got 0"),
        ("sources.1.max_tokens=-5", "source.max_tokens must be positive, got -5"),
        ("sources.0.packing=true", "source.packing joins documents of kind 'text', not of 'facts'"),
        ("sources.1={kind: instructions, dataset: a/b, packing: true}", "not of 'instructions'"),
        ("num_epochs=0", "num_epochs must be positive"),
        ("distillation_weight=-1", "distillation_weight must not be negative"),
        ("distillation_top_k=0", "distillation_top_k must be positive"),
        ("sources.0.reconstruction=1.5", "reconstruction must lie in 0..1"),
        ("sources.0.held_out_share=1", "held_out_share"),
        ("attention=flash", "attention must be eager, grouped or sdpa"),
        ("normalization_backward=float16", "normalization_backward must be float32 or bfloat16"),
        ("adam_betas=[0.9]", "adam_betas"),
        ("decay_share=2", "decay_share"),
        ("memory_rate=-1", "memory_rate must not be negative"),
        ("lookup_weight=-1", "lookup_weight must not be negative"),
        ("lookup_weight=1", "needs generator.normalization: ridge, not newton_schulz"),
        ("prompt.question=no place", "must hold {question}"),
        ("generator.rank=9", "generator.rank"),
    ],
)
def test_mistakes_are_named(plain: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(plain, [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_something_must_start_at_step_0(plain: Path) -> None:
    with pytest.raises(ConfigError, match="no source has start_step 0"):
        load_recipe(plain, ["sources.0.start_step=1", "sources.1.start_step=1"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"sources: [", "is not valid YAML"),
        (b"- 1\n", "expected a mapping"),
        (b"", "expected a mapping"),
        (b"\xff\xfe\x00", "can't read the recipe"),
        (b"sources: [{kind: facts}]\n", "'output' is missing"),
        (b"output: x\nsources: [{share: 1}]\n", "'kind' is missing"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_recipe(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't read the recipe"):
        load_recipe(tmp_path / "none.yaml")


def schedule(**settings: float) -> Callable[[int], float]:
    return TrainingRecipe(FACTS, "run", learning_rate=8.0, **settings).learning_rate_at  # type: ignore[arg-type]


def test_schedule_warms_up_stays_and_decays() -> None:
    rate = schedule(num_steps=20, warmup_steps=4, decay_share=0.5, final_learning_rate=0.0)
    assert [rate(step) for step in range(5)] == [2.0, 4.0, 6.0, 8.0, 8.0]
    assert [rate(step) for step in range(9, 14)] == pytest.approx([8.0, 8.0, 7.2, 6.4, 5.6])
    assert rate(19) == pytest.approx(0.8)
    assert rate(20) == 0.0 == rate(25)


def test_schedule_of_the_paper() -> None:
    rate = schedule(num_steps=12, warmup_steps=2, decay_share=1.0)
    assert [rate(step) for step in range(12)] == pytest.approx([4, 8, 8, 7.2, 6.4, 5.6, 4.8, 4, 3.2, 2.4, 1.6, 0.8])


def test_schedule_ends_at_the_final_part() -> None:
    rate = schedule(num_steps=10, warmup_steps=0, decay_share=0.2, final_learning_rate=0.25)
    assert [rate(step) for step in (0, 7, 8, 9, 10)] == [8.0, 8.0, 8.0, 5.0, 2.0]


def test_schedule_without_decay_and_all_warmup() -> None:
    assert schedule(num_steps=5, warmup_steps=0, decay_share=0.0)(4) == 8.0
    rate = schedule(num_steps=3, warmup_steps=4, decay_share=1.0)
    assert [rate(step) for step in range(3)] == [2.0, 4.0, 6.0]
