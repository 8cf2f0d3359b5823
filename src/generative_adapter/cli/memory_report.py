"""What a memory file holds, as a dictionary for `--json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from generative_adapter.generator.memory import ContextMemory


def describe_memory(path: Path, memory: ContextMemory) -> dict[str, Any]:
    """The size, form, kin and documents of a memory that stands in the file."""
    from generative_adapter.generator.memory_file import stored_dtype

    return {
        "kind": "memory",
        "path": str(path),
        "base_model": memory.base_name,
        "base_fingerprint": memory.base_fingerprint,
        "generator_fingerprint": memory.generator_fingerprint,
        "keeps_tokens": memory.keeps_tokens,
        "context_tokens": memory.num_tokens,
        "chunks": memory.num_chunks,
        "bytes": memory.num_bytes,
        "file_bytes": path.stat().st_size,
        "stored_as": stored_dtype(path),
        "documents": [
            {
                "name": document.name,
                "sha256": document.sha256,
                "tokens": document.num_tokens,
                "chunks": document.num_chunks,
                "streamed": document.streamed,
            }
            for document in memory.documents
        ],
    }
