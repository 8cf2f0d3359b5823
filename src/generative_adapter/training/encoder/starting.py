"""What a new generator with an encoder takes from its base model: the word map and the sizes of targets' inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from generative_adapter.base_model.final_norm import final_norm_gains
from generative_adapter.base_model.inject import find_linear
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import pad_id
from generative_adapter.config import TargetShape
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.generator.word_map import measure_word_map
from generative_adapter.training.encoder.frozen_states import FrozenStates, padded, word_counts
from generative_adapter.training.encoder.surroundings_start import measure_surroundings

_QUESTIONS = 128
_UNIT_LOUDNESS = 20.0  # of a unit whose token is meant, beside a linear read
_QUERY_SIZE = 0.05  # of new queries: a sum over all tokens with random weights should hardly be heard


@torch.no_grad()
def measure_start(generator: EncoderGenerator, base: BaseModel, states: FrozenStates) -> None:
    """Sets the word map by how often words occur in the passages, and every target's input scales by some questions.

    Args:
        generator: a new one.
        base: the frozen base model.
        states: of the passages.
    """
    head = base.model.get_input_embeddings()
    assert isinstance(head, nn.Embedding)
    embeddings = head.weight.detach()
    counts = word_counts(states, len(embeddings)).to(embeddings.device)
    gains = final_norm_gains(base.model, generator.hidden_size)
    generator.set_word_map(measure_word_map(embeddings, counts, gains, generator.value_dim))
    measure_surroundings(generator, base, states, embeddings, counts)
    step = max(1, len(states.asked) // _QUESTIONS)
    asked = [each[0] for each in states.asked[::step]]
    ids, mask = padded(
        [states.passages[each.passage].questions[each.number].ids for each in asked], pad_id(base.tokenizer)
    )
    answering = torch.zeros_like(mask)
    for row, each in enumerate(asked):
        question = states.passages[each.passage].questions[each.number]
        answering[row, question.num_prompt - 1 : len(question.ids) - 1] = True
    squares: dict[str, Tensor] = {}
    gates = {block.gate.name: block for block in generator.unit_blocks}
    downs = {block.down.name: block for block in generator.unit_blocks}

    def measure(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            squares[name] = args[0][mask].float().square().mean(0)
            if name in gates:
                block = gates[name]
                block.input_scales.copy_(_scales(squares[name]))
                block.query_proj.mul_(_QUERY_SIZE)
                block.set_offset(args[0][answering], args[0][mask & ~answering])
            if name in downs:
                downs[name].set_activity(squares[name].sqrt())

        return hook

    with ExitStack() as stack:
        for name in dict.fromkeys([*(target.name for target in generator.targets), *gates, *downs]):
            module = find_linear(base.model, name)
            stack.callback(module.register_forward_pre_hook(measure(name)).remove)
        decoder = getattr(base.model, "base_model", base.model)
        decoder(input_ids=ids.to(base.device), attention_mask=mask.long().to(base.device), use_cache=False)
    for target in generator.targets:
        generator[target.name].input_scales.copy_(_scales(squares[target.name]))
        generator[target.name].query_proj.mul_(_QUERY_SIZE)


def set_word_strength(generator: EncoderGenerator, lookup_targets: Sequence[TargetShape], strength: float) -> None:
    """Makes reads say the words that they find as loudly as `strength`: those of units, or else of `lookup_targets`."""
    for block in generator.unit_blocks:
        block.word_strength.fill_(strength / _UNIT_LOUDNESS)
    for target in () if generator.keeps_tokens else lookup_targets:
        generator[target.name].word_strength.fill_(strength)


def _scales(squares: Tensor) -> Tensor:
    """What makes inputs with these mean squares about one large, `[d_in]`."""
    size = squares.sqrt()
    return 1 / (size + 0.01 * size.mean())
