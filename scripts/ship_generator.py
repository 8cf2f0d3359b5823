"""Puts a trained generator into the package: bfloat16, settings and training record kept.

python scripts/ship_generator.py runs/smollm2-135m-facts/generator.safetensors
python scripts/ship_generator.py runs/smollm2-135m-encoder/generator.safetensors --name documents
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from generative_adapter import load_base_model, load_generator, save_generator
from generative_adapter.checkpoint import SHIPPED, read_generator_info

FOLDER = Path(__file__).parents[1] / "src/generative_adapter/checkpoints"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generator", type=Path)
    parser.add_argument("--name", choices=sorted(SHIPPED), default="facts", help="which of the shipped ones it becomes")
    given = parser.parse_args()
    target = FOLDER / SHIPPED[given.name]
    save_generator(target, load_generator(given.generator, load_base_model()), dtype=torch.bfloat16)
    info = read_generator_info(target)
    size = f"{info['num_parameters']:,} parameters, {info['num_bytes'] / 1e6:.1f} MB"
    print(f"{target}: {size}, step {info['training']['step']}")


if __name__ == "__main__":
    main()
