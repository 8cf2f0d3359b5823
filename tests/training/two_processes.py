"""Started by test_processes.py under torchrun: trains a recipe and saves the weights of each process."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from generative_adapter.base_model.loading import load_base_model
from generative_adapter.checkpoint import named_weights
from generative_adapter.training.recipe import load_recipe
from generative_adapter.training.run import make_trainer

torch.set_num_threads(1)
recipe = load_recipe(sys.argv[1])
trainer = make_trainer(recipe, load_base_model(recipe.base_model, device="cpu", dtype="float32"))
trainer.run()
save_file(named_weights(trainer.generator), Path(sys.argv[2]) / f"rank-{trainer.processes.rank}.safetensors")
trainer.processes.leave()
