"""`generative-adapter` as a model of lm-evaluation-harness: one adapter a sample, made from a part of its request.

A context in a request (`context_split`) becomes an adapter, and what is left of the request is answered or scored under
it; requests without a context see the plain base model. The harness finds the model once this module is imported, so
run the harness's own command line through it:

    python -m generative_adapter.evaluation.lm_eval_model run --model generative-adapter --tasks ... [any option]

Leaves out: sampling, several processes, and exported adapters, which the harness's own `hf` model runs (`peft=`).
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from generative_adapter.base_model.prompts import start_ids
from generative_adapter.config import require
from generative_adapter.contextualizer import GenerativeAdapter
from generative_adapter.errors import ConfigError, GenerativeAdapterError, MissingDependencyError
from generative_adapter.evaluation.adapted_rows import continue_rows, score_rows
from generative_adapter.evaluation.context_split import SEPARATOR, ContextSplit
from generative_adapter.generator.low_rank import LowRankAdapter

try:
    import lm_eval.models  # pyright: ignore[reportMissingImports]  # noqa: F401  else `hf` and others stay unknown
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
        get_rolling_token_windows,
        make_disjoint_window,
    )
    from tqdm import tqdm
except ImportError as error:
    raise MissingDependencyError(
        f"lm-evaluation-harness can't be imported ({error}); pip install 'generative-adapter[lm-eval]'"
    ) from error

_HARNESS_DEVICE = "cuda:0"  # what its command line asks for where the user says nothing
_MAX_LENGTH = 2048  # where neither config nor tokenizer tells
_MAX_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_WITHOUT_SAMPLING = {"until", "do_sample", "temperature", "top_p", "top_k", *_MAX_NEW_TOKENS}


@register_model("generative-adapter")
class GenerativeAdapterLM(TemplateLM):
    """A base model with a generator, for lm-evaluation-harness; every argument can be given in `--model_args`.

    Args:
        generator: file of a generator; None: the shipped one.
        base_model: hub id, folder or GGUF file; None: the one that the generator was trained for.
        context_separator: ends the context in a request; None: `<end-of-context>`, unless there is a pattern.
        context_pattern: regular expression that finds the context instead.
        batch_size: requests that run together.
        max_length: longest prompt with its answer, in tokens; None: the base model's.
        max_gen_toks: longest answer in tokens, where a task doesn't say.
        kept_adapters: adapters kept at least, so that a context isn't read again by the next task.
        device: `auto` or a torch device; the harness's default, `cuda:0`, is `auto` where there is no CUDA.
        dtype: number format of the base model, `auto`, `float32`, `bfloat16` or `float16`.
        any_base: take a base model other than the generator's, of the same shapes.
        model: a loaded model, instead of `generator` and `base_model`.

    Raises:
        ConfigError: when an argument is out of range, or both ways to find a context are given.
        GenerativeAdapterError: when a file can't be loaded.
    """

    def __init__(
        self,
        generator: str | None = None,
        base_model: str | None = None,
        context_separator: str | None = None,
        context_pattern: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        kept_adapters: int = 16,
        device: str = "auto",
        dtype: str = "auto",
        any_base: bool = False,
        model: GenerativeAdapter | None = None,
    ) -> None:
        super().__init__()
        digits = str(batch_size).isdigit() and int(batch_size) > 0
        require(digits and max_batch_size is None, f"batch_size must be a number from 1 on, got {batch_size!r}")
        require(max_gen_toks > 0 and kept_adapters >= 0, "max_gen_toks must be positive, kept_adapters not negative")
        separator = context_separator or ("" if context_pattern else SEPARATOR)
        self.split = ContextSplit(separator, context_pattern)
        self.batch_size = int(batch_size)
        self.max_gen_toks = max_gen_toks
        if device == _HARNESS_DEVICE and not torch.cuda.is_available():
            device = "auto"
        self.generative_adapter = model or GenerativeAdapter.from_pretrained(
            generator, base_model=base_model, device=device, dtype=dtype, any_base=any_base
        )
        self.base = self.generative_adapter.base
        self.tokenizer: Any = self.base.tokenizer
        self.max_length = max_length or _longest(self.base.model.config, self.tokenizer)
        self._device = self.base.device
        self._adapters: OrderedDict[str, LowRankAdapter] = OrderedDict()
        self._num_kept = max(kept_adapters, self.batch_size)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a prompt."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """The base model's name, which tells caches of requests apart."""
        return self.base.name.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return {
            "base_model": self.base.name,
            "base_fingerprint": self.base.fingerprint,
            "generator_fingerprint": self.generative_adapter.generator_fingerprint,
            "context_separator": self.split.separator,
            "context_pattern": self.split.pattern,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids as the harness's `hf` model has them: one begin-of-sequence token where the tokenizer adds one."""
        if add_special_tokens is None:
            begins = string.startswith(self.tokenizer.decode(self.prefix_token_id))
            add_special_tokens = bool(start_ids(self.tokenizer)) and not begins
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation in the tokenizer's template, its contexts taken out of the turns and put before all of it."""
        contexts, turns = [], []
        for message in chat_history:
            context, rest = ("", message["content"]) if self.split.pattern else self.split(message["content"])
            contexts += [context] * bool(context)
            turns.append({**message, "content": rest})
        text = self.tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return "\n\n".join(contexts) + f"\n{self.split.separator}\n{text}" if contexts else text

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text after its context, in windows of the longest prompt."""
        contexts, rows, owners = [], [], []
        for number, request in enumerate(requests):
            context, text = self.split(request.args[0])
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            for window in map(make_disjoint_window, windows):
                contexts.append(context)
                rows.append(window)
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, (score, _) in zip(owners, self._score(contexts, rows, disable_tqdm), strict=True):
            sums[number] += score
        for request, score in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, score)
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The likeliest answer to each request.

        Raises:
            ConfigError: when a task asks for sampling, or leaves no room for a prompt.
        """
        texts = [""] * len(requests)
        groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(self._generation(request.args[1]), []).append(index)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Answering") as bar:
            for (until, max_new_tokens), indices in groups.items():
                split = [self.split(requests[index].args[0]) for index in indices]
                room = self.max_length - max_new_tokens
                prompts = [self._prompt_ids(prompt)[-room:] for _, prompt in split]
                contexts = [context for context, _ in split]
                for batch in self._batches(contexts, [len(prompt) for prompt in prompts]):
                    found = continue_rows(
                        self.base,
                        [prompts[i] for i in batch],
                        self._adapters_of([contexts[i] for i in batch]),
                        until=until,
                        max_new_tokens=max_new_tokens,
                    )
                    for i, text in zip(batch, found, strict=True):
                        texts[indices[i]] = text
                        self.cache_hook.add_partial("generate_until", requests[indices[i]].args, text)
                    bar.update(len(batch))
        return texts

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of what is left of a request, and of what is to be scored after it."""
        _, prompt = self.split(context)
        if prompt:
            return super()._encode_pair(prompt, continuation)
        target = self.tok_encode(continuation, add_special_tokens=False)
        return ([self.prefix_token_id], target) if target[0] != self.prefix_token_id else (target[:1], target[1:])

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        contexts = [self.split(request[0][0])[0] for request in requests]
        scores = self._score(contexts, [request[1:] for request in requests], disable_tqdm)
        for request, score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", request[0], score)
        return scores

    def _score(
        self, contexts: Sequence[str], rows: Sequence[tuple[list[int], list[int]]], disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        with tqdm(total=len(rows), disable=disable_tqdm, desc="Scoring") as bar:
            for batch in self._batches(contexts, [len(prompt) + len(target) for prompt, target in rows]):
                cut = [self._cut(*rows[i]) for i in batch]
                found = score_rows(self.base, cut, self._adapters_of([contexts[i] for i in batch]))
                for i, score in zip(batch, found, strict=True):
                    scores[i] = score
                bar.update(len(batch))
        return scores

    def _cut(self, prompt: list[int], target: list[int]) -> tuple[list[int], list[int]]:
        """The last `max_length` tokens that are read; the target's last token is not."""
        if len(target) > self.max_length:
            raise ConfigError(f"a text to score has {len(target)} tokens, max_length is {self.max_length}; raise it")
        return prompt[-(self.max_length + 1 - len(target)) :], target

    def _batches(self, contexts: Sequence[str], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of rows that run together: those of a context one after another, so that it is read once."""
        turn = {context: number for number, context in enumerate(dict.fromkeys(contexts))}
        order = sorted(range(len(contexts)), key=lambda i: (turn[contexts[i]], lengths[i]))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _adapters_of(self, contexts: Sequence[str]) -> list[LowRankAdapter | None]:
        for context in filter(None, contexts):
            if context not in self._adapters:
                memory = self.generative_adapter.contextualize(context)
                self._adapters[context] = self.generative_adapter.adapter(memory)
            self._adapters.move_to_end(context)
        while len(self._adapters) > self._num_kept:
            self._adapters.popitem(last=False)
        return [self._adapters[context] if context else None for context in contexts]

    def _prompt_ids(self, prompt: str) -> list[int]:
        return self.tok_encode(prompt) or [self.prefix_token_id]

    def _generation(self, settings: dict[str, Any]) -> tuple[tuple[str, ...], int]:
        """Texts that end an answer, and its longest length in tokens."""
        sampled = settings.get("do_sample", bool(settings.get("temperature")))
        unknown = settings.keys() - _WITHOUT_SAMPLING
        if sampled or unknown:
            asked = "sampling" if sampled else ", ".join(sorted(unknown))
            raise ConfigError(f"a task asks for {asked}; answers are greedy here, give --gen_kwargs do_sample=False")
        until = settings.get("until") or []
        lengths = [settings[name] for name in _MAX_NEW_TOKENS if settings.get(name) is not None]
        max_new_tokens = int(lengths[0]) if lengths else self.max_gen_toks
        if not 0 < max_new_tokens < self.max_length:
            raise ConfigError(
                f"a task asks for {max_new_tokens} new tokens, prompt and answer have {self.max_length} together; "
                "give --gen_kwargs max_gen_toks=N"
            )
        return tuple([until] if isinstance(until, str) else filter(None, until)), max_new_tokens


def main() -> None:
    """The harness's command line with this model registered; errors of this package end it with one line."""
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    try:
        cli_evaluate()
    except GenerativeAdapterError as error:
        sys.exit(f"error: {error}")


def _longest(config: Any, tokenizer: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        if isinstance(length := getattr(config, name, None), int):
            return length
    told = tokenizer.model_max_length
    return told if told < 1e9 else _MAX_LENGTH


if __name__ == "__main__":
    main()
