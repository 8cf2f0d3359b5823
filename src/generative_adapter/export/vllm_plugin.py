"""A vLLM plugin: a request for the model `context:<id>` runs under the adapter of that memory.

vLLM asks its LoRA resolvers for adapters that it doesn't know; this one finds the memory in a store, makes its adapter
on first use and hands vLLM the folder. It is registered by itself (entry point `vllm.general_plugins`) wherever this
package is installed beside vLLM and a store is named:

    GENERATIVE_ADAPTER_STORE       folder or fsspec URL of the memories (`MemoryStore`)
    GENERATIVE_ADAPTER_GENERATOR   the generator's file or hub id; default: the shipped one
    GENERATIVE_ADAPTER_FOLDERS     where adapters are kept on this machine; default: below its cache folder
    GENERATIVE_ADAPTER_RANK        truncate all adapters to this rank; default: as they are

vLLM itself needs `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`, `--enable-lora` and a `--max-lora-rank` that holds the adapters.
Leaves out: vLLM's own cache of adapters (`--max-loras`, `--max-cpu-loras`). vLLM is imported inside the functions,
since this package runs without it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative_adapter.errors import ConfigError, GenerativeAdapterError

if TYPE_CHECKING:
    from generative_adapter.export.adapter_folders import AdapterFolders

PREFIX = "context:"
STORE_VARIABLE = "GENERATIVE_ADAPTER_STORE"
GENERATOR_VARIABLE = "GENERATIVE_ADAPTER_GENERATOR"
FOLDERS_VARIABLE = "GENERATIVE_ADAPTER_FOLDERS"
RANK_VARIABLE = "GENERATIVE_ADAPTER_RANK"
RESOLVER_NAME = "Generative Adapter"

logger = logging.getLogger(__name__)


def register() -> None:
    """Registers the resolver with vLLM where a store is named; called by vLLM in each of its processes."""
    location = os.environ.get(STORE_VARIABLE)
    if not location:
        return
    from vllm.lora.resolver import LoRAResolverRegistry  # pyright: ignore[reportMissingImports]

    if RESOLVER_NAME in LoRAResolverRegistry.get_supported_resolvers():
        return
    LoRAResolverRegistry.register_resolver(RESOLVER_NAME, make_resolver(location))
    logger.info("%s<id> is served from %s", PREFIX, location)


def make_resolver(location: str) -> Any:
    """VLLM's resolver of the memories in a store; settings come from the environment.

    Raises:
        ConfigError: when a setting is wrong.
        CheckpointError: when the generator can't be read.
    """
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]
    from vllm.lora.resolver import LoRAResolver  # pyright: ignore[reportMissingImports]

    class ContextResolver(LoRAResolver):  # pyright: ignore[reportUntypedBaseClass]
        """Adapters of memories by name; see the module."""

        def __init__(self) -> None:
            self._folders: AdapterFolders | None = None

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            """The adapter of `context:<id>`, None for other names and unknown memories."""
            if not lora_name.startswith(PREFIX):
                return None
            found = await asyncio.to_thread(self._find, lora_name.removeprefix(PREFIX))
            if found is None:
                return None
            return LoRARequest(lora_name=lora_name, lora_int_id=stable_number(lora_name), lora_path=str(found))

        def _find(self, memory_id: str) -> Path | None:
            try:
                if self._folders is None:
                    self._folders = folders_from_environment(location)
                return self._folders.adapter(memory_id)
            except GenerativeAdapterError as error:
                logger.warning("%s%s: %s", PREFIX, memory_id, error)
                return None

    return ContextResolver()


def folders_from_environment(location: str) -> AdapterFolders:
    """The adapters' folder as the environment sets it up.

    Raises:
        ConfigError: when a setting is wrong.
        CheckpointError: when the generator can't be read.
    """
    from generative_adapter.checkpoint import find_generator, load_generator_alone
    from generative_adapter.export.adapter_folders import AdapterFolders
    from generative_adapter.export.memory_store import MemoryStore
    from generative_adapter.export.peft import RANKS

    rank = os.environ.get(RANK_VARIABLE) or None
    if rank is not None and rank not in map(str, RANKS):
        raise ConfigError(f"{RANK_VARIABLE} must be one of {', '.join(map(str, RANKS))}, got {rank!r}")
    checkpoint = load_generator_alone(find_generator(os.environ.get(GENERATOR_VARIABLE) or None))
    chosen = None if rank is None else int(rank)
    return AdapterFolders(MemoryStore(location), checkpoint, adapters_folder(), rank=chosen)


def adapters_folder() -> Path:
    """Where the environment has adapters kept on this machine."""
    from generative_adapter.base_model.dequantise import cache_folder

    return Path(os.environ.get(FOLDERS_VARIABLE) or cache_folder() / "adapters")


def stable_number(name: str) -> int:
    """VLLM's number of an adapter: positive, and the same in every process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") + 1
