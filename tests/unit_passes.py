"""Passes of generators whose memories keep tokens, against the adapter in the whole base model."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.resumed_pass import resumed_logits
from generative_adapter.generator.encoder_generator import MEMORY
from generative_adapter.training.encoder.encoding import group_memories
from generative_adapter.training.encoder.groups import GroupSampler
from generative_adapter.training.encoder.passes import pass_losses
from generative_adapter.training.encoder.preparing import lookup_targets
from generative_adapter.training.encoder.question_rows import question_rows


def rows_of(base, generator, states, passages) -> torch.Tensor:
    """The memory of some passages, each chunk read alone, from the states that are kept."""
    rows = []
    embeddings = base.model.get_input_embeddings().weight.detach()
    for number in passages:
        kept, at = states.passage_states(number).float(), 0
        for chunk in states.passages[number].chunks:
            own = kept[at : at + len(chunk)].unsqueeze(0)
            hidden = dict(zip(generator.layers[1:], own.chunk(len(generator.layers) - 1, dim=-1), strict=True))
            hidden[0] = embeddings[torch.tensor([chunk])].to(torch.bfloat16).float()
            rows.append(generator.write(hidden)[MEMORY][0])
            at += len(chunk)
    return torch.cat(rows)


def check_passes(recipe, base, generator, states, embeddings, step):
    """The losses of a pass are those of the whole base model under the adapter that the generator makes."""
    sampler = GroupSampler(states, embeddings, recipe.encoder_training, seed=0)
    groups = sampler.groups(step, 0, 8)
    memories = group_memories(generator, states, embeddings, groups)
    rows = question_rows(states, groups, 96, 30)
    found = pass_losses(base, generator, states, rows, memories, lookup_targets(recipe, generator), [])
    expected = []
    for asked, index in [each for each in rows.questions if each is not None]:
        if index:
            continue
        group = next(each for each in groups if asked.passage in each.passages and asked in each.asked)
        question = states.passages[asked.passage].questions[asked.number]
        memory = {MEMORY: rows_of(base, generator, states, group.passages)}
        hidden = states.question_states(asked).float().unsqueeze(0)  # rounded, as the pass has them
        supervised = torch.zeros(1, len(question.ids), dtype=torch.bool)
        supervised[0, question.num_prompt - 1 : -1] = True
        with torch.no_grad(), inject(base.model, generator.adapter(memory)):
            logits = resumed_logits(base.model, 1, hidden, torch.ones_like(supervised).long(), supervised)
        expected.append(F.cross_entropy(logits, torch.tensor(question.ids[question.num_prompt :]), reduction="none"))
    assert expected
    torch.testing.assert_close(found.answers, torch.cat(expected), rtol=5e-3, atol=5e-3)
    found.answers.sum().backward()
    for block in generator.unit_blocks:
        assert all(float(each.grad.abs().max()) > 0 for each in block.parameters() if each.grad is not None)
        assert block.query_proj.grad is not None and block.gate_strength.grad is not None
