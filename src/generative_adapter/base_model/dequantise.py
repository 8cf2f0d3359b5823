"""Turns a GGUF file into a folder that `from_pretrained` reads: bfloat16 weights, configuration, tokenizer.

That takes ten seconds and more, so the folder is kept in the user's cache, under a name that tells one file from
another; it appears there complete or not at all. Leaves out: computing on the quantised weights.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from generative_adapter.errors import BaseModelError, MissingDependencyError

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "GENERATIVE_ADAPTER_CACHE"

_CACHE_FORMAT = 1  # raise it when what is written for a GGUF changes
_CACHE_MARKER = "complete.json"
_KEY_BYTES = 1 << 20  # of the GGUF's head and tail, each
_STALE_SECONDS = 24 * 3600
# The pre-tokenizers of llama.cpp that put every digit apart before GPT-2's rule; transformers reads only the latter.
_DIGIT_SPLITTING = {"smollm", "starcoder", "refact", "command-r"}
_GPT2_LIKE = {"", "default", "gpt-2", "qwen2"}


@contextmanager
def dequantised_folder(path: Path) -> Iterator[Path]:
    """A folder with the dequantised model of the GGUF file `path`: in the cache, or temporary where that can't be.

    Raises:
        BaseModelError: the file can't be read as a causal language model.
        MissingDependencyError: the package `gguf` is absent.
    """
    from safetensors import SafetensorError

    folder = cache_folder() / "gguf" / f"{path.stem}-{_cache_key(path)}"
    if not _is_complete(folder):
        try:
            _fill_cache(path, folder)
        except (OSError, SafetensorError) as error:
            logger.warning("can't keep the dequantised %s in %s (%s); going on without a cache", path, folder, error)
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
                _dequantise(path, Path(temporary))
                yield Path(temporary)
            return
    yield folder


def cache_folder() -> Path:
    """Where dequantised models are kept: $GENERATIVE_ADAPTER_CACHE, else the system's folder for caches."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "generative-adapter"
    if sys.platform == "win32" and (root := os.environ.get("LOCALAPPDATA")):
        return Path(root) / "generative-adapter" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "generative-adapter"
    return Path.home() / ".cache" / "generative-adapter"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' bars and warnings off the terminal while a model loads, and restores them."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    _set_bars(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        _set_bars(bars)


def _set_bars(enabled: bool) -> None:
    # transformers' own switch would also turn off the download bars of huggingface_hub
    from transformers.utils import logging as transformers_logging

    transformers_logging._tqdm_active = enabled  # pyright: ignore[reportPrivateUsage]


def _cache_key(path: Path) -> str:
    size = path.stat().st_size
    transformers_major = importlib.metadata.version("transformers").split(".")[0]
    digest = hashlib.sha256(f"{_CACHE_FORMAT} {transformers_major} {path.name} {size}\n".encode())
    with path.open("rb") as file:
        digest.update(file.read(_KEY_BYTES))
        file.seek(max(0, size - _KEY_BYTES))
        digest.update(file.read(_KEY_BYTES))
    return digest.hexdigest()[:16]


def _is_complete(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / _CACHE_MARKER).read_text(encoding="utf-8"))
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _fill_cache(path: Path, folder: Path) -> None:
    """Writes beside `folder` and renames, so that a kill or a second process never leaves a half-made `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(".*.partial"):
        if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        logger.info("dequantising %s into %s (once)", path, folder)
        _dequantise(path, temporary)
        sizes = {file.name: file.stat().st_size for file in temporary.iterdir()}
        (temporary / _CACHE_MARKER).write_text(json.dumps(sizes, indent=2), encoding="utf-8")
        if folder.exists() and not _is_complete(folder):
            folder.rename(temporary.with_suffix(".broken.partial"))
            shutil.rmtree(temporary.with_suffix(".broken.partial"), ignore_errors=True)
        try:
            temporary.rename(folder)
        except OSError:
            if not _is_complete(folder):  # else another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _dequantise(path: Path, folder: Path) -> None:
    """Writes the GGUF at `path` into `folder` as `save_pretrained` would: bfloat16 safetensors, config, tokenizer."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError(f"reading {str(path)!r} needs the package gguf: pip install gguf")
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers import modeling_gguf_pytorch_utils as gguf_reading
    from transformers.utils import logging as transformers_logging

    try:
        reader = GGUFReader(path)
        field = reader.fields.get("tokenizer.ggml.pre")
        pre_tokenizer = str(field.contents()) if field else ""
        with quiet_transformers():
            config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
            with torch.device("meta"):
                skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            # from_pretrained(gguf_file=...) would do the same but refuses without the package accelerate
            bar = gguf_reading.tqdm  # pyright: ignore[reportPrivateImportUsage]
            gguf_reading.tqdm = transformers_logging.tqdm  # pyright: ignore  # the one that quiet_transformers silences
            try:
                tensors = gguf_reading.load_gguf_checkpoint(
                    str(path), return_tensors=True, model_to_load=skeleton, torch_dtype=torch.bfloat16
                )["tensors"]
            finally:
                gguf_reading.tqdm = bar  # pyright: ignore[reportPrivateImportUsage]
    except (ValueError, KeyError, IndexError, NotImplementedError, OSError) as error:
        raise BaseModelError(
            f"{str(path)!r} can't be read as a GGUF causal language model: a complete file of an architecture that "
            f"transformers dequantises was expected; download it again or give a folder or a hub id ({error})"
        ) from error
    _restore_digit_splitting(tokenizer, pre_tokenizer, path)
    config.architectures = [type(skeleton).__name__]
    config.dtype = torch.bfloat16
    vars(config).pop("_model_name_or_path", None)  # the GGUF's general.name, which is no place to load from
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _restore_digit_splitting(tokenizer: Any, pre_tokenizer: str, path: Path) -> None:
    """Puts digits apart where the GGUF asks for it; else a numbered list gets tokens unseen in training."""
    from tokenizers import pre_tokenizers

    if pre_tokenizer in _DIGIT_SPLITTING:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif pre_tokenizer not in _GPT2_LIKE:
        logger.warning(
            "%s splits text by the rule %r, which transformers may not reproduce; prefer the model's own folder or "
            "hub id",
            path,
            pre_tokenizer,
        )
