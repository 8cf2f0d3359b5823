"""Puts a trained generator into the package: bfloat16, settings and training record kept.

    python scripts/ship_generator.py runs/u2/generator.safetensors runs/u3/generator.safetensors

Of several generators, each of which went on from the one before, the mean of their weights is put there, with the
settings and the training record of the last; `--weights` weighs them. `--output FILE` writes a file instead, in
float32, for a run that goes on from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from generative_adapter import load_base_model, load_generator, save_generator
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.checkpoint import GeneratorCheckpoint, read_generator_info

TARGET = Path(__file__).parents[1] / "src/generative_adapter/checkpoints/smollm2-135m-instruct.safetensors"


@torch.no_grad()
def mean_generator(
    paths: Sequence[Path], base: BaseModel, weights: Sequence[float] | None = None
) -> GeneratorCheckpoint:
    """The last of some generators with the mean of the weights of all; its training record names them.

    Args:
        paths: files of the generators.
        base: what they were trained for.
        weights: how much each counts, relative to the others; None: all alike.
    """
    counts = torch.tensor(weights if weights is not None else [1.0] * len(paths), dtype=torch.float64)
    shares = (counts / counts.sum()).tolist()
    *others, last = (load_generator(path, base) for path in paths)
    for name, weight in last.generator.named_parameters():
        each = [*(dict(other.generator.named_parameters())[name] for other in others), weight]
        weight.copy_(sum(share * own for share, own in zip(shares, each, strict=True)))
    if not others:
        return last
    record = {"mean_of": [str(path) for path in paths]} | ({"mean_weights": shares} if weights is not None else {})
    return replace(last, training={**last.training, **record})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generators", type=Path, nargs="+")
    parser.add_argument("--weights", type=float, nargs="+", help="how much each counts (default: all alike)")
    parser.add_argument("--output", type=Path, help="file to write in float32, in place of the package's in bfloat16")
    given = parser.parse_args()
    if given.weights is not None and (len(given.weights) != len(given.generators) or min(given.weights) <= 0):
        parser.error(f"--weights takes a positive number for each of the {len(given.generators)} generators")
    mean = mean_generator(given.generators, load_base_model(), given.weights)
    target = given.output or TARGET
    save_generator(target, mean, dtype=torch.float32 if given.output else torch.bfloat16)
    info = read_generator_info(target)
    size = f"{info['num_parameters']:,} parameters, {info['num_bytes'] / 1e6:.1f} MB"
    print(f"{target}: {size}, step {info['training']['step']}")


if __name__ == "__main__":
    main()
