"""Values of held-out passages under means of several generators' weights: which of them to ship, or to go on from.

    python scripts/compare_means.py configs/smollm2-135m-units-averaged.yaml --run runs/u4 \
        runs/mean-u2-u3.safetensors \
        "5*runs/mean-u2-u3.safetensors + 5*runs/u4/checkpoint-00000[6-9]*/generator.safetensors" --group 8 --group 32

Each mean is a sum of files with how much each counts (1, if it isn't said), shared by the files of one pattern. `--run`
is the folder of a run of the recipe, whose states are read. Values are those of the run's evaluation lines:
`answer_loss`, the shares of `right` answer tokens, of questions with the right `first` token and an `exact` answer, and
`kept_loss`, the divergence on unrelated text, and `kept_text_rise`, the log of how many times its perplexity rises.
Each `--group` evaluates with memories of so many passages: what answers best from short memories need not from long
ones. `ship_generator.py` makes the mean.
"""

from __future__ import annotations

import argparse
import glob
from pathlib import Path

from ship_generator import mean_generator

from generative_adapter.base_model.loading import load_base_model
from generative_adapter.errors import ConfigError
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.training.encoder.loop import EncoderTrainer
from generative_adapter.training.processes import Processes
from generative_adapter.training.recipe import load_recipe
from generative_adapter.training.run import make_trainer


def counted_files(mean: str) -> list[tuple[float, Path]]:
    """The files of a mean, with how much each counts.

    Raises:
        ConfigError: a pattern fits no file, or a count is no positive number.
    """
    counted: list[tuple[float, Path]] = []
    for term in mean.split(" + "):
        count, pattern = 1.0, term.strip()
        first, star, rest = pattern.partition("*")
        if star and first.replace(".", "", 1).isdigit():
            count, pattern = float(first), rest
        files = sorted(glob.glob(pattern))
        if not files or count <= 0:
            raise ConfigError(f"{term.strip()!r}: {'no such file' if count > 0 else 'counts must be positive'}")
        counted += [(count / len(files), Path(file)) for file in files]
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("means", nargs="+", metavar="MEAN")
    parser.add_argument("--run", type=Path, required=True, help="folder of a run of the recipe")
    parser.add_argument("--passages", type=int, default=48, help="held-out ones, those of the first source first")
    parser.add_argument(
        "--group", type=int, action="append", metavar="PASSAGES", help="share a memory; default: as the recipe says"
    )
    given = parser.parse_args()
    if given.group and min(given.group) < 1:
        parser.error(f"--group must be positive, got {min(given.group)}")
    means = [(each, counted_files(each)) for each in given.means]
    changes = [f"output={given.run}", "initial_generator=null", "encoder_training.teacher_share=0"]
    recipe = load_recipe(given.recipe, [*changes, f"encoder_training.evaluation_passages={given.passages}"])
    base = load_base_model(recipe.base_model, device=recipe.device, dtype=recipe.dtype)
    trainer = make_trainer(recipe, base, None, Processes(recipe.device))
    if not isinstance(trainer, EncoderTrainer):
        parser.error(f"{given.recipe} is not of a generator with an encoder")
    trainer.progress.step = trainer.num_steps
    for name, counted in means:
        generator = mean_generator([path for _, path in counted], base, [count for count, _ in counted]).generator
        assert isinstance(generator, EncoderGenerator)
        trainer.generator = generator
        for group in given.group or [recipe.encoder_training.evaluation_group]:
            values = trainer.evaluate(group)
            print(name, f"group {group}", *(f"{value} {values[value]:.4f}" for value in values), sep="  ", flush=True)


if __name__ == "__main__":
    main()
