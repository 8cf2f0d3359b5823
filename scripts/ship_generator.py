"""Puts a trained generator into the package: bfloat16, settings and training record kept.

python scripts/ship_generator.py runs/u2/generator.safetensors runs/u3/generator.safetensors

Of several generators, each of which went on from the one before, the mean of their weights is put there, with the
settings and the training record of the last.
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
def mean_generator(paths: Sequence[Path], base: BaseModel) -> GeneratorCheckpoint:
    """The last of some generators with the mean of the weights of all; its training record names them."""
    *others, last = (load_generator(path, base) for path in paths)
    for name, weight in last.generator.named_parameters():
        each = [dict(other.generator.named_parameters())[name] for other in others]
        weight.copy_(torch.stack([weight, *each]).mean(0))
    if not others:
        return last
    return replace(last, training={**last.training, "mean_of": [str(path) for path in paths]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generators", type=Path, nargs="+")
    given = parser.parse_args()
    save_generator(TARGET, mean_generator(given.generators, load_base_model()), dtype=torch.bfloat16)
    info = read_generator_info(TARGET)
    size = f"{info['num_parameters']:,} parameters, {info['num_bytes'] / 1e6:.1f} MB"
    print(f"{TARGET}: {size}, step {info['training']['step']}")


if __name__ == "__main__":
    main()
