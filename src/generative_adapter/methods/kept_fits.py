"""Fine-tuned weights on disk, so that an evaluation that was killed need not fine-tune on its pairs again.

A file is named by a hash of all that the weights depend on. Leaves out: weights of single contexts, which are as many.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from generative_adapter.errors import CheckpointError
from generative_adapter.generator.storage import write_safetensors
from generative_adapter.methods.fitting import Fit

_FORMAT = "generative-adapter-fit"


class KeptFits:
    """Weights in a folder, by what they depend on.

    Args:
        folder: made when the first file is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def get(self, name: str, depends_on: Mapping[str, Any]) -> Fit | None:
        """What was kept; None where there is nothing.

        Raises:
            CheckpointError: when the file is damaged.
        """
        path = self._path(name, depends_on)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                told = json.loads((file.metadata() or {})["fit"])
                values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return Fit(values, tuple(told["losses"]), tuple(told["validation_losses"]), told["flops"])
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); delete it, it will be made again") from error

    def put(self, name: str, depends_on: Mapping[str, Any], fit: Fit) -> None:
        """Keeps weights, in a file that is complete or absent."""
        told = {"losses": fit.losses, "validation_losses": fit.validation_losses, "flops": fit.flops}
        write_safetensors(
            self._path(name, depends_on), fit.values, {"format": _FORMAT, "version": "1", "fit": json.dumps(told)}
        )

    def _path(self, name: str, depends_on: Mapping[str, Any]) -> Path:
        text = json.dumps(depends_on, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return self.folder / f"{name}-{digest}.safetensors"
