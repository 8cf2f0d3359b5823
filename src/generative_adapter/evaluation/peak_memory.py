"""The most memory that a block of code takes: of the device where that is a GPU, else of the process (Linux).

Leaves out: how much of it is the base model, which is there before the block begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class PeakMemory:
    """What a block took.

    Attributes:
        bytes: at its peak, everything that was there before included; None where the system doesn't tell.
    """

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measures a block; the value is there once the block has ended.

    Args:
        device: where the block computes.
    """
    found = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device)
        return
    was_reset = _reset()
    yield found
    found.bytes = _peak() if was_reset else None


def _reset() -> bool:
    """Sets the process's peak to what it holds now."""
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak() -> int | None:
    try:
        match = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text(encoding="ascii"))
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None
