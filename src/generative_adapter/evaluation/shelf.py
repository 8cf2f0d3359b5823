"""Methods built when they are first needed, once for each wording, and what their answers depend on.

Leaves out: which samples they answer (`runner`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.checkpoint import find_generator
from generative_adapter.errors import CheckpointError
from generative_adapter.methods.protocol import Method, Wording
from generative_adapter.methods.registry import SETTINGS_USED, build_into, check_names
from generative_adapter.methods.settings import MethodSettings

_NOT_RESULTS = {"wording", "batching", "progress", "kept_fits"}


class MethodShelf:
    """Methods by name and wording; fine-tuning on pairs is done once for all tasks that share a wording.

    Args:
        base: the base model.
        settings: of all methods; its wording is replaced by each task's.
        names: that will be asked for.

    Raises:
        ConfigError: a name is unknown or given twice.
    """

    def __init__(self, base: BaseModel, settings: MethodSettings, names: tuple[str, ...]) -> None:
        check_names(names)
        self.base = base
        self.settings = settings
        self._built: dict[Wording, dict[str, Method]] = {}
        self._generator: str | None = None
        self._pairs: str | None = None

    def get(self, name: str, wording: Wording) -> Method:
        """The method, built when it is first asked for.

        Raises:
            CheckpointError: a generator can't be read.
            DataError: fine-tuning has no pairs.
        """
        built = self._built.setdefault(wording, {})
        return build_into(built, name, self.base, replace(self.settings, wording=wording))

    def identity(self, name: str, wording: Wording) -> dict[str, Any]:
        """All that the answers of a method to a given sample depend on, as plain JSON values."""
        used = SETTINGS_USED.get(name, tuple(item.name for item in fields(self.settings)))
        own: dict[str, Any] = {}
        for field_name in used:
            if field_name in _NOT_RESULTS:
                continue
            if field_name == "generator":
                own[field_name] = self._generator_digest()
            elif field_name == "training_pairs":
                own["pairs"] = self._pairs_digest()
            elif field_name != "validation_pairs":
                value = getattr(self.settings, field_name)
                if isinstance(value, Mapping):  # by method name; cpt-... goes on from sft-...
                    value = [value.get(each) for each in (name, name.replace("cpt-", "sft-"))]
                own[field_name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        return {
            "method": name,
            "wording": asdict(wording),
            "base": self.base.fingerprint,
            "dtype": str(self.base.dtype).removeprefix("torch."),
            "settings": own,
        }

    def _generator_digest(self) -> str:
        if self._generator is None:
            try:
                self._generator = _digest(find_generator(self.settings.generator).read_bytes())
            except CheckpointError:  # the method that needs it will say so
                self._generator = str(self.settings.generator)
        return self._generator

    def _pairs_digest(self) -> str:
        if self._pairs is None:
            pairs = [self.settings.training_pairs, self.settings.validation_pairs]
            self._pairs = _digest(json.dumps(pairs, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        return self._pairs


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
