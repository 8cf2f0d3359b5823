"""The model of lm-evaluation-harness against direct computation, and against its own `hf` model with `peft=`."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from generative_adapter.base_model.inject import merge
from generative_adapter.errors import ConfigError, MissingDependencyError
from generative_adapter.evaluation.context_split import SEPARATOR
from generative_adapter.export.peft import save_peft

CONTEXTS = ("Ann lives in Bonn.", "Carl keeps bees in Delft, and a boat.")


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-evaluation-harness is installed")
def test_without_the_harness_the_message_says_what_to_install():
    with pytest.raises(MissingDependencyError, match=r"pip install 'generative-adapter\[lm-eval\]'"):
        importlib.import_module("generative_adapter.evaluation.lm_eval_model")


@pytest.fixture(scope="module")
def plugin():
    pytest.importorskip("lm_eval")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("generative_adapter.evaluation.lm_eval_model")


@pytest.fixture
def make(plugin, tiny_adapter):
    return lambda **settings: plugin.GenerativeAdapterLM(model=tiny_adapter, **{"batch_size": 3} | settings)


def asked(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


def request(context, prompt):
    return f"{context}\n{SEPARATOR}\n{prompt}" if context else prompt


def direct_score(tiny_adapter, context, prompt, target):
    """By merged weights, a text a time; the tiny tokenizer has a token a byte."""
    model, tokenizer = tiny_adapter.base.model, tiny_adapter.base.tokenizer
    if context:
        model = merge(model, tiny_adapter.adapter(tiny_adapter.contextualize(context)))
    head, tail = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt, target))
    head = head or [tokenizer.bos_token_id]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([head + tail]), use_cache=False).logits[0].double().log_softmax(-1)
    rows = range(len(head) - 1, len(head) + len(tail) - 1)
    return sum(logits[row, token].item() for row, token in zip(rows, tail, strict=True))


PAIRS = [
    (CONTEXTS[0], "Where is Ann?", " Bonn"),
    ("", "Where is Ann?", " Bonn"),
    (CONTEXTS[1], "What does Carl keep?\nA:", " bees and boats"),
    (CONTEXTS[0], "Who?", " Ann"),
    (CONTEXTS[1], "", "Carl"),
]


def test_likelihoods_equal_direct_computation(make, tiny_adapter):
    expected = [direct_score(tiny_adapter, *pair) for pair in PAIRS]
    requests = asked(*((request(context, prompt), target) for context, prompt, target in PAIRS))
    for batch_size in (1, 3, 8):
        found = make(batch_size=batch_size).loglikelihood(requests, disable_tqdm=True)
        assert [score for score, _ in found] == pytest.approx(expected, abs=1e-4)
    assert abs(expected[0] - expected[1]) > 0.05


def test_rolling_likelihood_of_a_text_after_its_context(make, tiny_adapter):
    text = "Bonn is old."
    requests = asked((request(CONTEXTS[0], text),), (text,))
    found = make().loglikelihood_rolling(requests, disable_tqdm=True)
    expected = [direct_score(tiny_adapter, context, "", text) for context in (CONTEXTS[0], "")]
    assert found == pytest.approx(expected, abs=1e-4)
    windows = make(max_length=5).loglikelihood_rolling(requests[1:], disable_tqdm=True)
    pieces = [direct_score(tiny_adapter, "", "", text[:5]), direct_score(tiny_adapter, "", text[4], text[5:10])]
    last = direct_score(tiny_adapter, "", text[6:10], text[10:])
    assert len(text) == 12
    assert windows[0] == pytest.approx(sum(pieces) + last, abs=1e-4)


def test_answers_run_under_their_own_adapters_and_contexts_are_read_once(make, tiny_adapter, monkeypatch):
    read = []
    original = type(tiny_adapter).contextualize
    monkeypatch.setattr(
        type(tiny_adapter), "contextualize", lambda self, text: read.append(text) or original(self, text)
    )
    prompts = [request(context, prompt) for prompt in ("Q: 1\nA:", "Q: 22\nA:") for context in (*CONTEXTS, "")]
    settings = {"until": ["\n"], "max_gen_toks": 9, "do_sample": False}
    model = make(batch_size=2)
    together = model.generate_until(asked(*((prompt, settings) for prompt in prompts)), disable_tqdm=True)
    assert sorted(read) == sorted(CONTEXTS)
    alone = [make(batch_size=1).generate_until(asked((prompt, settings)), disable_tqdm=True)[0] for prompt in prompts]
    assert together == alone
    assert len(set(together[:3])) == 3


def test_settings_that_cannot_be_kept(make):
    for settings, match in (
        ({"do_sample": True}, "asks for sampling"),
        ({"temperature": 0.8}, "asks for sampling"),
        ({"num_beams": 4}, "num_beams"),
        ({"max_gen_toks": 10**6}, "give --gen_kwargs max_gen_toks"),
    ):
        with pytest.raises(ConfigError, match=match):
            make().generate_until(asked(("a", settings)), disable_tqdm=True)
    for options in ({"batch_size": "auto"}, {"kept_adapters": -1}, {"context_separator": "#", "context_pattern": "a"}):
        with pytest.raises(ConfigError):
            make(**options)
    with pytest.raises(ConfigError, match="max_length is 4"):
        make(max_length=4).loglikelihood(asked(("a", "bcdefg")), disable_tqdm=True)


def test_chat_template_takes_contexts_out_of_turns(make, tiny_adapter):
    model = make()
    turns = [{"role": "user", "content": request(CONTEXTS[0], "Where?")}]
    text = model.apply_chat_template(turns)
    context, prompt = model.split(text)
    assert context == CONTEXTS[0]
    plain = [{"role": "user", "content": "Where?"}]
    assert prompt == tiny_adapter.base.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    assert model.apply_chat_template(plain) == prompt


QUESTIONS = [(CONTEXTS[0], "Where is Ann?", "Bonn"), (CONTEXTS[1], "Where is Carl?", "Delft")]
TASK = """\
task: tiny_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{prompt}{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean}}]
"""


@pytest.fixture
def evaluate(plugin, tmp_path, monkeypatch):
    """Runs a local task file through the whole harness and gives its result and each sample's likelihoods."""
    path = tmp_path / "questions.jsonl"
    choices = ["Bonn", "Delft"]
    lines = [
        {"context": c, "question": q, "choices": sorted(choices, key=lambda choice: choice != right)}
        for c, q, right in QUESTIONS
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tiny_open.yaml").write_text(TASK.format(name="open", path=path, prompt=f"{{{{context}}}}{SEPARATOR}"))
    (tmp_path / "tiny_closed.yaml").write_text(TASK.format(name="closed", path=path, prompt=""))

    def run(model, task):
        import datasets
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
            found = simple_evaluate(model=model, tasks=[task], task_manager=manager, bootstrap_iters=0)
        samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
        return found["results"][task], [[pair[0] for pair in sample["filtered_resps"]] for sample in samples]

    return run


def test_a_local_task_through_the_whole_harness(make, evaluate, tiny_adapter):
    expected = []
    for context, question, right in QUESTIONS:
        ordered = sorted(("Bonn", "Delft"), key=lambda choice: choice != right)
        expected.append([direct_score(tiny_adapter, context, question, f" {choice}") for choice in ordered])
    result, likelihoods = evaluate(make(), "tiny_open")
    assert [score for pair in likelihoods for score in pair] == pytest.approx([*expected[0], *expected[1]], abs=1e-3)
    right = [first > second for first, second in expected]
    assert result["acc,none"] == pytest.approx(sum(right) / 2)


def test_the_exported_adapter_gives_the_same_in_the_harness_own_model(make, evaluate, tiny_adapter, tmp_path):
    peft = pytest.importorskip("peft")
    from lm_eval.models.huggingface import HFLM

    adapter = tiny_adapter.adapter(tiny_adapter.contextualize(CONTEXTS[0]))
    save_peft(adapter, tmp_path / "lora", "tiny", model=tiny_adapter.base.model, dtype="fp32")
    wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(tiny_adapter.base.model), str(tmp_path / "lora"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = HFLM(pretrained=wrapped, tokenizer=tiny_adapter.base.tokenizer, device="cpu", batch_size=2)
    _, exported = evaluate(theirs, "tiny_closed")
    _, ours = evaluate(make(), "tiny_open")
    assert exported[0] == pytest.approx(ours[0], abs=1e-3)
    assert not math.isclose(exported[1][0], ours[1][0], abs_tol=1e-2)
    _, plain = evaluate(make(), "tiny_closed")
    assert not math.isclose(exported[0][0], plain[0][0], abs_tol=1e-2)
