"""Trains a writer of questions: passage in, answers and questions about it out, from SQuAD's training paragraphs.

    torchrun --nproc-per-node 2 scripts/questions/train_writer.py --base BASE_FOLDER --output runs/question-writer \
        --squad ../shared/data/squad/train-subset-v1.1.json.zst --max-seconds 1500

BASE_FOLDER is a plain Hugging Face model (`save_base_model` writes one of the embedded base model). The upper blocks
are trained in float32 by AdamW, gradients in bfloat16; what stops the run is its time, over which the rate falls to
zero. `write_questions.py` uses the result.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
import zstandard
from transformers import AutoModelForCausalLM, AutoTokenizer

HEADING = "\n\nQuestions and answers:\n"
_HELD_OUT = 40
_SAVE_SECONDS = 200


def listed(answer: str, question: str) -> str:
    """One line of the list that the writer writes."""
    return f"- {answer} | {question}\n"


def read_paragraphs(path: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """Paragraphs of a file in SQuAD's format with (answer, question) pairs, each answer once."""
    with path.open("rb") as file:
        data = json.load(io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8"))
    paragraphs = []
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            pairs: dict[str, str] = {}
            for each in paragraph["qas"]:
                if each["answers"]:
                    pairs.setdefault(each["answers"][0]["text"].strip(), each["question"].strip())
            if len(pairs) >= 3:
                paragraphs.append((paragraph["context"].strip(), list(pairs.items())))
    return paragraphs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--squad", type=Path, required=True, help="training paragraphs in SQuAD's format, zstd")
    parser.add_argument("--output", type=Path, required=True, help="folder of the writer")
    parser.add_argument("--max-seconds", type=float, default=1500)
    parser.add_argument("--paragraphs-per-step", type=int, default=16, help="of all processes")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--first-block", type=int, default=8, help="blocks below it stay as they are")
    arguments = parser.parse_args()

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

    paragraphs = read_paragraphs(arguments.squad)
    random.Random(0).shuffle(paragraphs)
    held_out, paragraphs = paragraphs[:_HELD_OUT], paragraphs[_HELD_OUT:]

    def loss_of(context: str, pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, int]:
        prompt = tokenizer(context + HEADING).input_ids
        written = [*tokenizer("".join(listed(*pair) for pair in pairs)).input_ids, tokenizer.eos_token_id]
        ids = [*prompt, *written]
        padding = -len(ids) % 64  # few shapes, so that blocks of memory fit again
        hidden = model.model(torch.tensor([ids + [tokenizer.eos_token_id] * padding])).last_hidden_state
        logits = model.lm_head(hidden[0, len(prompt) - 1 : len(ids) - 1]).float()
        return F.cross_entropy(logits, torch.tensor(written), reduction="sum"), len(written)

    def evaluate() -> float:
        with torch.no_grad():
            sums = torch.tensor([0.0, 0.0])
            for context, pairs in held_out[rank::world]:
                loss, size = loss_of(context, pairs)
                sums += torch.tensor([loss.item(), size])
        dist.all_reduce(sums)
        return (sums[0] / sums[1]).item()

    def save(step: int, held_out_loss: float | None) -> None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(arguments.output)
        tokenizer.save_pretrained(arguments.output)
        made = {"held_out_loss": held_out_loss, "steps": step, "paragraphs_per_step": arguments.paragraphs_per_step}
        (arguments.output / "training.json").write_text(json.dumps(made | {"command": sys.argv}) + "\n")

    start, step, epoch, order = time.monotonic(), 0, 0, []
    saved = start
    print_here = rank == 0
    before = evaluate()
    if print_here:
        print(f"{len(paragraphs)} paragraphs, held-out loss {before:.3f} nats a token", flush=True)
    while True:
        spent = torch.tensor([(time.monotonic() - start) / arguments.max_seconds])
        dist.all_reduce(spent, dist.ReduceOp.MAX)
        if spent.item() >= 1:
            break
        rate = arguments.learning_rate * min(1.0, (step + 1) / 15) * max(0.02, 1 - spent.item())
        for group in optimizer.param_groups:
            group["lr"] = rate
        if len(order) < arguments.paragraphs_per_step:
            order = random.Random(f"epoch {epoch}").sample(range(len(paragraphs)), len(paragraphs))
            epoch += 1
        mine, order = order[: arguments.paragraphs_per_step][rank::world], order[arguments.paragraphs_per_step :]
        sums = torch.tensor([0.0, 0.0])
        for number in mine:
            loss, size = loss_of(*paragraphs[number])
            (loss / 1000).backward()
            sums += torch.tensor([loss.item(), size])
        dist.all_reduce(sums)
        flat = torch.cat([each.grad.flatten() for each in trained])  # pyright: ignore[reportOptionalMemberAccess]
        dist.all_reduce(flat)
        flat = flat.float() * (1000 / sums[1])
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


if __name__ == "__main__":
    main()
