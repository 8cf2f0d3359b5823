"""Fine-tunes the upper blocks of a base model for a given time: what `train_writer.py` and `train_reader.py` share.

The blocks are trained in float32 by AdamW, gradients in bfloat16, by one or several processes (`torchrun`); what stops
a run is its time, over which the learning rate falls to zero.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

_SAVE_SECONDS = 200
_MULTIPLE = 64  # lengths are padded to one: few shapes, so that blocks of memory fit again
_LOSS_SCALE = 1000  # of the sums whose gradients are bfloat16


@dataclass(frozen=True)
class Example:
    """A sequence of which some tokens are learned.

    Attributes:
        ids: the sequence.
        learnt: numbers of the tokens that are to be predicted from those before them, ascending, none of them 0.
    """

    ids: Sequence[int]
    learnt: Sequence[int]


def parser_for(description: str, what: str, per_step: int) -> argparse.ArgumentParser:
    """The options of every such script.

    Args:
        description: of the script.
        what: it makes.
        per_step: examples of a step unless told.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--base", type=Path, required=True, help="folder of the base model (`genadapter export --base`)"
    )
    parser.add_argument("--output", type=Path, required=True, help=f"folder of the {what}")
    parser.add_argument("--max-seconds", type=float, default=1500)
    parser.add_argument("--per-step", type=int, default=per_step, help="examples of a step, of all processes")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--first-block", type=int, default=8, help="blocks below it stay as they are")
    return parser


def tune(
    arguments: argparse.Namespace,
    items: Sequence[Any],
    held_out: Sequence[Any],
    encode: Callable[[Any, Any], Example],
) -> None:
    """Trains until the time is over, saves every few minutes and at the end.

    Args:
        arguments: of `parser_for`.
        items: what is learned from, each of them again and again in another order.
        held_out: what the loss before and after is of.
        encode: makes an example of the tokeniser and an item.
    """
    if len(items) < arguments.per_step or not held_out:
        sys.exit(f"{len(items)} examples to train on and {len(held_out)} held out; a step takes {arguments.per_step}")
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    model = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.bfloat16)
    model.requires_grad_(False)
    trained = [p for block in model.model.layers[arguments.first_block :] for p in block.parameters()]
    for each in trained:
        each.requires_grad_(True)
    masters = [each.detach().float() for each in trained]
    optimizer = torch.optim.AdamW(masters, lr=arguments.learning_rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)

    def loss_of(item: Any) -> tuple[torch.Tensor, int]:
        example = encode(tokenizer, item)
        ids, learnt = torch.tensor(example.ids), torch.tensor(example.learnt)
        padded = F.pad(ids, (0, -len(ids) % _MULTIPLE), value=tokenizer.eos_token_id)
        hidden = model.model(padded.unsqueeze(0)).last_hidden_state
        logits = model.lm_head(hidden[0, learnt - 1]).float()
        return F.cross_entropy(logits, ids[learnt], reduction="sum"), len(learnt)

    def evaluate() -> float:
        with torch.no_grad():
            sums = torch.tensor([0.0, 0.0])
            for item in held_out[rank::world]:
                loss, size = loss_of(item)
                sums += torch.tensor([loss.item(), size])
        dist.all_reduce(sums)
        return (sums[0] / sums[1]).item()

    def save(step: int, held_out_loss: float | None) -> None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(arguments.output)
        tokenizer.save_pretrained(arguments.output)
        made = {"held_out_loss": held_out_loss, "steps": step, "per_step": arguments.per_step}
        (arguments.output / "training.json").write_text(json.dumps(made | {"command": sys.argv}) + "\n")

    start, step, epoch, order = time.monotonic(), 0, 0, []
    saved = start
    print_here = rank == 0
    before = evaluate()
    if print_here:
        print(f"{len(items)} examples, held-out loss {before:.3f} nats a token", flush=True)
    while True:
        spent = torch.tensor([(time.monotonic() - start) / arguments.max_seconds])
        dist.all_reduce(spent, dist.ReduceOp.MAX)
        if spent.item() >= 1:
            break
        rate = arguments.learning_rate * min(1.0, (step + 1) / 15) * max(0.02, 1 - spent.item())
        for group in optimizer.param_groups:
            group["lr"] = rate
        if len(order) < arguments.per_step:
            order = random.Random(f"epoch {epoch}").sample(range(len(items)), len(items))
            epoch += 1
        mine, order = order[: arguments.per_step][rank::world], order[arguments.per_step :]
        sums = torch.tensor([0.0, 0.0])
        for number in mine:
            loss, size = loss_of(items[number])
            (loss / _LOSS_SCALE).backward()
            sums += torch.tensor([loss.item(), size])
        dist.all_reduce(sums)
        flat = torch.cat([each.grad.flatten() for each in trained])  # pyright: ignore[reportOptionalMemberAccess]
        dist.all_reduce(flat)
        flat = flat.float() * (_LOSS_SCALE / sums[1])
        norm = flat.norm()
        flat *= (1.0 / norm).clamp(max=1.0)
        for each, master, gradient in zip(trained, masters, flat.split([p.numel() for p in trained]), strict=True):
            master.grad = gradient.view_as(master)
            each.grad = None
        optimizer.step()
        with torch.no_grad():
            for each, master in zip(trained, masters, strict=True):
                each.copy_(master)
        step += 1
        if print_here and step % 5 == 0:
            seconds = time.monotonic() - start
            print(f"step {step}, {seconds:.0f} s, loss {sums[0] / sums[1]:.3f}, gradient norm {norm:.2f}", flush=True)
        if print_here and time.monotonic() - saved > _SAVE_SECONDS:
            save(step, None)
            saved = time.monotonic()
    after = evaluate()
    if print_here:
        print(f"{step} steps, held-out loss {after:.3f} nats a token", flush=True)
        save(step, after)
    dist.destroy_process_group()
