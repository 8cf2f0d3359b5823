"""What contexts do to everything else a model can: interference and general ability of a run, beside its results.

`forgetting.json` in the folder of a run holds both; `text_losses.jsonl` the losses behind general ability, a line for
each context, so that a run that was killed goes on. Leaves out: the controls' answers, which are results like any other
(`results`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from generative_adapter.errors import DataError
from generative_adapter.evaluation.general_ability import GeneralAbility, measure_general_ability, segments_loss
from generative_adapter.evaluation.interference import BEFORE, Interference, method_interference
from generative_adapter.evaluation.json_lines import append_line, cut_unfinished_line
from generative_adapter.evaluation.results import SCHEMA_VERSION, SampleResult
from generative_adapter.evaluation.run_folder import FORGETTING_FILE
from generative_adapter.evaluation.shelf import MethodShelf
from generative_adapter.methods.protocol import Context, Method, PredictsText, Wording

LOSSES_FILE = "text_losses.jsonl"
WITHOUT_CONTEXT = ("closed-book", "no-adapter")


class LossLog:
    """Summed losses by key, one JSON line each; a line that was left unfinished is cut off.

    Args:
        folder: of the run.

    Raises:
        DataError: another line is broken.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / LOSSES_FILE
        self._kept: dict[str, float] = {}
        if not self.path.is_file():
            return
        cut_unfinished_line(self.path)
        for number, line in enumerate(self.path.read_bytes().splitlines(), 1):
            try:
                values = json.loads(line)
                self._kept[values["key"]] = float(values["loss"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{self.path}, line {number}: no loss ({error}); delete the line") from error

    def get(self, key: str, measure: Callable[[], float]) -> float:
        """The loss of a key; measured, and written before it is given, where it isn't there yet."""
        if key not in self._kept:
            self._kept[key] = measure()
            append_line(self.path, {"key": key, "loss": self._kept[key]})
        return self._kept[key]


def with_before(names: Sequence[str]) -> tuple[str, ...]:
    """The methods, and those without a context that they have to be compared with."""
    before = [BEFORE.get(name, "closed-book") for name in names if name not in WITHOUT_CONTEXT]
    return tuple(dict.fromkeys([*names, *before]))


def interference_of(
    results: Sequence[SampleResult], names: Sequence[str], seed: int = 0
) -> dict[str, dict[int, Interference]]:
    """Interference by method and context length, of those methods that take in a context.

    Raises:
        DataError: results of a method, or of what it is compared with, are missing.
    """
    lengths = sorted({result.metadata["context_tokens"] for result in results})
    by_length = {
        length: [result for result in results if result.metadata["context_tokens"] == length] for length in lengths
    }
    return {
        name: {length: method_interference(own, name, seed=seed) for length, own in by_length.items()}
        for name in names
        if name not in WITHOUT_CONTEXT
    }


def general_ability_of(
    shelf: MethodShelf,
    names: Sequence[str],
    wording: Wording,
    contexts: Mapping[int, Sequence[Context]],
    segments: Sequence[Sequence[int]],
    folder: Path,
    *,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, dict[int, GeneralAbility]]:
    """General ability by method and context length, of those methods that can tell it and take in a context.

    Args:
        shelf: methods.
        names: of those that are wanted.
        wording: that methods are built with.
        contexts: by length.
        segments: of held-out text.
        folder: where losses are kept.
        seed: of methods that draw numbers, and of the bootstrap.
        progress: is told the method, contexts done and contexts in all.
    """
    log = LossLog(folder)
    found: dict[str, dict[int, GeneralAbility]] = {}
    for name in (name for name in names if name not in WITHOUT_CONTEXT):
        method = shelf.get(name, wording)
        if not isinstance(method, PredictsText):
            continue
        identity = json.dumps([shelf.identity(name, wording), seed, segments], sort_keys=True, default=str)
        for length, own in contexts.items():

            def loss_of(context: Context, method: Method = method, identity: str = identity) -> float:
                def measure() -> float:
                    torch.manual_seed(seed)
                    return segments_loss(method, context, segments)

                asked = json.dumps([identity, context.text, context.documents, context.examples])
                return log.get(hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:24], measure)

            def tell(done: int, total: int, name: str = name, length: int = length) -> None:
                if progress is not None:
                    progress(f"{name}, held-out text, {length}", done, total)

            found.setdefault(name, {})[length] = measure_general_ability(
                shelf.base, method, own, segments, seed=seed, loss_of=loss_of, progress=tell
            )
    return found


def write_forgetting(
    folder: Path,
    interference: Mapping[str, Mapping[int, Interference]],
    general_ability: Mapping[str, Mapping[int, GeneralAbility]],
) -> Path:
    """Writes `forgetting.json`, by a temporary file: by method and context length."""
    values: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "interference": _plain(interference),
        "general_ability": _plain(general_ability),
    }
    path = Path(folder) / FORGETTING_FILE
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def _plain(found: Mapping[str, Mapping[int, Interference | GeneralAbility]]) -> dict[str, dict[str, Any]]:
    return {name: {str(length): each.to_dict() for length, each in own.items()} for name, own in found.items()}
