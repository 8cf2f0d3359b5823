"""Fine-tuned methods on a tiny model: what they learn, what they keep, what they cost, as LoRA and of all weights."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

from generative_adapter.base_model.fingerprint import base_model_fingerprint
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.errors import CheckpointError, ConfigError, DataError, MissingDependencyError
from generative_adapter.methods.closed_book import ClosedBook
from generative_adapter.methods.continual_pretraining import CPT, ContinualPretraining
from generative_adapter.methods.fine_tuning import LORA_LEARNING_RATE, SFT, SupervisedFineTuning
from generative_adapter.methods.fitting import FitSettings, Sample
from generative_adapter.methods.k_shot import K_SHOT, KShotFineTuning
from generative_adapter.methods.kept_fits import KeptFits
from generative_adapter.methods.protocol import Context, Query, Wording
from generative_adapter.methods.tuned_weights import FullWeights, LoraWeights, TunedWeights
from tiny_models import tiny_base

WORDING = Wording("task", "Q: {question}\nA:", "{context}\n\nQ: {question}\nA:", chat=False, shots=(("c", "q", "a"),))
PAIRS = (("Who naps?", "Cy"), ("Who keeps bees?", "Ada"), ("Who sells kites?", "Bo"))
FAST = FitSettings(learning_rate=1e-2, max_epochs=25, batch_size=3)


def fast(weights: TunedWeights) -> FitSettings:
    return FAST if weights.form == "full" else dataclasses.replace(FAST, learning_rate=4e-2, max_epochs=50)


@pytest.fixture
def base() -> BaseModel:
    return tiny_base("llama")


@pytest.fixture(params=["full", "lora"])
def weights(request: pytest.FixtureRequest, base: BaseModel) -> TunedWeights:
    if request.param == "full":
        return FullWeights(base)
    pytest.importorskip("peft")
    return LoraWeights(base, rank=6)


def check_unchanged(base: BaseModel) -> None:
    fresh = tiny_base("llama")
    assert base_model_fingerprint(base.model) == base.fingerprint == fresh.fingerprint
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert [name for name, _ in base.model.named_modules()] == [name for name, _ in fresh.model.named_modules()]
    assert vars(base.model).keys() == vars(fresh.model).keys()


def asked(method, state) -> list[str]:
    plain = dataclasses.replace(WORDING, shots=())
    answers = method.answer(state, [Query(question) for question, _ in PAIRS], plain, 8)
    return [answer.text.removeprefix("Ġ") for answer in answers]  # the tiny tokenizer shows a space as that


def test_supervised_fine_tuning_answers_what_it_was_taught(base: BaseModel, weights: TunedWeights, context) -> None:
    method = SupervisedFineTuning(weights, PAIRS, WORDING, settings=fast(weights))
    state = method.take_in(context)
    assert method.name == f"sft-{weights.form}"
    assert asked(method, state) == [answer for _, answer in PAIRS]
    assert asked(method, state) != asked(ClosedBook(base), None)
    check_unchanged(base)
    assert method.take_in(Context("Another.")).values is state.values  # trained once
    costs = method.costs(state, method.answer(state, [Query("Who naps?")], WORDING, 3))
    assert costs.training_flops == state.fits[0].flops > 0 and costs.answering_flops > 0
    assert costs.contextualizing_flops == costs.stored_floats == costs.stored_bytes == 0
    options, plain = [Query(PAIRS[1][0], ("Bo", "Ada", "Cy"))], dataclasses.replace(WORDING, shots=())
    [scored], [before] = method.answer(state, options, plain, 1), ClosedBook(base).answer(None, options, plain, 1)
    assert scored.text == "Ada" and scored.option_scores[1] > before.option_scores[1] + 1
    method.close()
    check_unchanged(base)


def test_trained_again_it_is_the_same(base: BaseModel, weights: TunedWeights, context) -> None:
    short = dataclasses.replace(FAST, max_epochs=2, batch_size=1)
    torch.manual_seed(1)
    first = SupervisedFineTuning(weights, PAIRS, WORDING, settings=short).take_in(context)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = SupervisedFineTuning(weights, PAIRS, WORDING, settings=short).take_in(context)
    assert torch.equal(torch.get_rng_state(), before)  # others' random numbers stay as they were
    assert first.values.keys() == again.values.keys()
    assert all(torch.equal(value, again.values[name]) for name, value in first.values.items())


def test_continual_pretraining_reads_documents(base: BaseModel, weights: TunedWeights, context: Context) -> None:
    sft = SupervisedFineTuning(weights, PAIRS, WORDING, settings=dataclasses.replace(FAST, max_epochs=2))
    settings = dataclasses.replace(fast(weights), max_epochs=25)
    method = ContinualPretraining(weights, WORDING, sft=sft, settings=settings)
    state = method.take_in(context)
    documents = state.fits[0]
    assert method.name == f"cpt-{weights.form}" and documents.losses[-1] < 0.6 * documents.losses[0]
    assert documents.num_epochs == 25 and len(state.fits) == 1
    with weights.applied(sft.trained().values):
        started = ContinualPretraining(weights, WORDING, settings=settings)  # the plain model, as it now is
        samples = started._documents(context.documents)
        expected = _mean_loss(base, samples)
    assert documents.losses[0] == pytest.approx(expected, rel=0.02)
    costs = method.costs(state, [])
    assert costs.training_flops == sft.trained().flops and costs.contextualizing_flops == documents.flops > 0
    assert costs.stored_floats == weights.num_floats == sum(value.numel() for value in state.values.values())
    assert costs.stored_bytes == 4 * costs.stored_floats and costs.contextualizing_seconds > 0
    check_unchanged(base)


def _mean_loss(base: BaseModel, samples: list[Sample]) -> float:
    with torch.no_grad():
        logits = [base.model(input_ids=torch.tensor([s.ids])).logits[0, :-1].log_softmax(dim=-1) for s in samples]
    parts = [-each[torch.arange(len(s.ids) - 1), list(s.ids[1:])] for each, s in zip(logits, samples, strict=True)]
    return torch.cat(parts).mean().item()


def test_continual_pretraining_in_the_papers_order(base: BaseModel, context: Context) -> None:
    weights = FullWeights(base)
    sft = SupervisedFineTuning(weights, PAIRS, WORDING, settings=FAST)
    settings = dataclasses.replace(FAST, max_epochs=2)
    method = ContinualPretraining(weights, WORDING, sft=sft, sft_first=False, settings=settings)
    state = method.take_in(context)
    assert [len(each.losses) for each in state.fits] == [2, 25]
    assert asked(method, state) == [answer for _, answer in PAIRS]
    costs = method.costs(state, [])
    assert costs.training_flops == 0 and costs.contextualizing_flops == sum(each.flops for each in state.fits)
    with pytest.raises(ConfigError, match="same weights"):
        ContinualPretraining(FullWeights(base), WORDING, sft=sft)


def test_long_documents_are_cut_where_they_do_not_fit(base: BaseModel) -> None:
    method = ContinualPretraining(FullWeights(base), WORDING)
    samples = method._documents(["x" * 2500, "short", ""])
    assert [len(sample.ids) for sample in samples] == [1024, 1024, 452, 5]
    begin = tiny_base("llama", begin=True)
    samples = ContinualPretraining(FullWeights(begin), WORDING)._documents(["x" * 2500])
    assert [len(sample.ids) for sample in samples] == [1024, 1024, 455]
    assert {sample.ids[0] for sample in samples} == {1}


def test_k_shot_learns_demonstrations(base: BaseModel, weights: TunedWeights) -> None:
    context = Context("unused", examples=PAIRS)
    method = KShotFineTuning(weights, WORDING, settings=fast(weights))
    state = method.take_in(context)
    assert method.name == f"k-shot-{weights.form}" and asked(method, state) == [answer for _, answer in PAIRS]
    assert state.fits[0].validation_losses == ()  # too few to hold any out
    costs = method.costs(state, [])
    assert costs.training_flops == 0 and costs.contextualizing_flops == state.fits[0].flops
    assert costs.stored_floats == weights.num_floats
    check_unchanged(base)
    with pytest.raises(DataError, match="demonstrations"):
        method.take_in(Context("text"))


def test_k_shot_stops_by_examples_held_out(base: BaseModel) -> None:
    pairs = tuple((f"What is {number}?", str(number % 3)) for number in range(9))
    settings = dataclasses.replace(FAST, learning_rate=1e-3, max_epochs=2, patience=3)
    weights = FullWeights(base)
    state = KShotFineTuning(weights, WORDING, settings=settings).take_in(Context("", examples=pairs))
    own = KShotFineTuning(weights, WORDING, settings=settings, validation=lambda _: pairs[-2:])
    expected = own.take_in(Context("", examples=pairs[:-2]))
    assert len(state.fits[0].validation_losses) == 3
    assert state.fits[0].validation_losses == expected.fits[0].validation_losses
    assert state.fits[0].losses == expected.fits[0].losses


def test_settings_of_appendix_c(base: BaseModel) -> None:
    assert (SFT.learning_rate, SFT.batch_size, SFT.patience) == (1e-5, 64, 1)
    assert (CPT.learning_rate, CPT.batch_size, CPT.max_epochs) == (1e-5, 16, 8)
    assert (K_SHOT.learning_rate, K_SHOT.max_epochs, K_SHOT.patience) == (5e-6, 40, 3)
    assert KShotFineTuning(FullWeights(base), WORDING).settings == K_SHOT
    lora = KShotFineTuning(LoraWeights(base), WORDING)
    assert lora.settings == dataclasses.replace(K_SHOT, learning_rate=LORA_LEARNING_RATE)
    with pytest.raises(DataError, match="no question-answer pair"):
        SupervisedFineTuning(FullWeights(base), [], WORDING)


def test_samples_hold_question_and_answer(base: BaseModel) -> None:
    method = KShotFineTuning(FullWeights(base), WORDING)
    [sample] = method.pair_samples([("Who?", "Ada")])
    encode = base.tokenizer
    given = encode("Q: Who?\nA:", add_special_tokens=False)["input_ids"]
    assert sample == Sample((*given, *encode(" Ada\n", add_special_tokens=False)["input_ids"]), len(given))
    [long] = method.pair_samples([("W" * 3000, "Ada")])
    assert len(long.ids) == 1024 and long.ids[-5:] == sample.ids[-5:] and long.num_given == 1024 - 5


def test_lora_numbers(base: BaseModel) -> None:
    own = [(20, 24), (20, 12), (20, 12), (24, 20), (20, 37), (20, 37), (37, 20)]
    assert LoraWeights(base, rank=3).num_floats == 2 * 3 * sum(i + o for i, o in own)
    with pytest.raises(ConfigError, match="rank"):
        LoraWeights(base, rank=0)


@pytest.mark.skipif(importlib.util.find_spec("peft") is not None, reason="PEFT is installed")
def test_without_peft_the_message_says_what_to_install(base: BaseModel, context: Context) -> None:
    with pytest.raises(MissingDependencyError, match="pip install"):
        SupervisedFineTuning(LoraWeights(base), PAIRS, WORDING).take_in(context)
    check_unchanged(base)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_lora_starts_as_the_base_model_and_has_its_numbers(family: str) -> None:
    pytest.importorskip("peft")
    base = tiny_base(family)
    weights = LoraWeights(base, rank=4)
    ids = torch.tensor([[40, 41, 42, 43]])
    plain = base.model(input_ids=ids).logits
    with weights.applied({}, trainable=True) as parameters:
        assert sum(parameter.numel() for parameter in parameters.values()) == weights.num_floats
        assert all(parameter.requires_grad for parameter in parameters.values())
        torch.testing.assert_close(base.model(input_ids=ids).logits.detach(), plain)
        own = {name: parameter.detach() + 0.1 for name, parameter in parameters.items()}
    with weights.applied(own) as parameters:
        assert all(torch.equal(parameter, own[name]) for name, parameter in parameters.items())
        assert (base.model(input_ids=ids).logits - plain).abs().max() > 1e-3
    assert torch.equal(base.model(input_ids=ids).logits, plain)


def test_kept_weights_are_taken_again_while_nothing_else_is_asked_for(weights: TunedWeights, tmp_path) -> None:
    def sft(pairs=PAIRS, **changed) -> SupervisedFineTuning:
        settings = dataclasses.replace(FAST, max_epochs=1, **changed)
        return SupervisedFineTuning(weights, pairs, WORDING, settings=settings, kept=KeptFits(tmp_path))

    first = sft().trained()
    again = sft()
    again.fit_from = lambda start: pytest.fail("trained again")  # type: ignore[method-assign]
    kept = again.trained()
    assert (kept.losses, kept.validation_losses, kept.flops) == (first.losses, first.validation_losses, first.flops)
    assert kept.values.keys() == first.values.keys()
    assert all(torch.equal(kept.values[name], value) for name, value in first.values.items())
    assert sft(pairs=PAIRS[:1]).trained().losses != first.losses
    assert sft(seed=4).trained().flops == first.flops
    assert len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"is damaged .* delete it"):
        sft().trained()
