"""Puts a trained generator into the package: bfloat16, settings and training record kept.

python scripts/ship_generator.py runs/smollm2-135m-facts/generator.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from generative_adapter import load_base_model, load_generator, save_generator
from generative_adapter.checkpoint import read_generator_info

TARGET = Path(__file__).parents[1] / "src/generative_adapter/checkpoints/smollm2-135m-instruct.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generator", type=Path)
    given = parser.parse_args()
    save_generator(TARGET, load_generator(given.generator, load_base_model()), dtype=torch.bfloat16)
    info = read_generator_info(TARGET)
    size = f"{info['num_parameters']:,} parameters, {info['num_bytes'] / 1e6:.1f} MB"
    print(f"{TARGET}: {size}, step {info['training']['step']}")


if __name__ == "__main__":
    main()
