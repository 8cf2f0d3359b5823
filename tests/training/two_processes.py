"""Started by test_processes.py under torchrun: trains a recipe, saves each process's weights, what it held and did."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from generative_adapter.base_model.loading import load_base_model
from generative_adapter.base_model.targets import find_blocks
from generative_adapter.checkpoint import named_weights
from generative_adapter.training.processes import Processes
from generative_adapter.training.recipe import load_recipe
from generative_adapter.training.run import make_trainer

torch.set_num_threads(1)
recipe = load_recipe(sys.argv[1])
processes = Processes(recipe.device, recipe.shard_base)
base = load_base_model(recipe.base_model, device="cpu", dtype="float32")
trainer = make_trainer(recipe, base, processes=processes)


def count_held() -> int:
    """Numbers of the base model's blocks that this process keeps."""
    held = 0
    for parameter in find_blocks(base.model)[1].parameters():
        held += getattr(parameter, "to_local", lambda p=parameter: p)().numel()
        held += parameter.ds_tensor.numel() if hasattr(parameter, "ds_tensor") else 0  # DeepSpeed's part
    return held


held = count_held()
passes = 0
for step in range(recipe.num_steps):
    items = trainer.sampler.step(step)
    passes += len(trainer.batches(processes.share(items, [item.num_tokens for item in items])))
trainer.run()
output = Path(sys.argv[2])
save_file(named_weights(trainer.generator), output / f"rank-{processes.rank}.safetensors")
numbers = {"blocks": max(held, count_held()), "passes": passes, "fingerprint": base.fingerprint}
(output / f"rank-{processes.rank}.json").write_text(json.dumps(numbers))
processes.leave()
