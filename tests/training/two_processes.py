"""Started by test_processes.py under torchrun: trains a recipe, saves each process's weights, what it held and did."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from generative_adapter.base_model.loading import load_base_model
from generative_adapter.base_model.targets import find_blocks
from generative_adapter.checkpoint import named_weights
from generative_adapter.training.recipe import load_recipe
from generative_adapter.training.run import make_trainer

torch.set_num_threads(1)
recipe = load_recipe(sys.argv[1])
trainer = make_trainer(recipe, load_base_model(recipe.base_model, device="cpu", dtype="float32"))
processes = trainer.processes
parameters = [
    getattr(parameter, "to_local", lambda p=parameter: p)()
    for parameter in find_blocks(trainer.base.model)[1].parameters()
]
held = sum(parameter.numel() for parameter in parameters)
passes = 0
for step in range(recipe.num_steps):
    items = trainer.sampler.step(step)
    passes += len(trainer.batches(processes.share(items, [item.num_tokens for item in items])))
trainer.run()
output = Path(sys.argv[2])
save_file(named_weights(trainer.generator), output / f"rank-{processes.rank}.safetensors")
numbers = {"blocks": held, "passes": passes}
(output / f"rank-{processes.rank}.json").write_text(json.dumps(numbers))
processes.leave()
