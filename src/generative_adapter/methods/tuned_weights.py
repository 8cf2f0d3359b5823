"""Weights that fine-tuning changes: all of a model's, or LoRA through PEFT. The base model always gets back its own.

Leaves out: how they are trained (`fitting`). PEFT is imported when LoRA is first applied; it is an optional dependency.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from generative_adapter.base_model.costs import BaseSizes, base_sizes, forward_flops
from generative_adapter.base_model.inject import find_linear
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.targets import is_transposed
from generative_adapter.config import require
from generative_adapter.errors import MissingDependencyError

Values = Mapping[str, Tensor]  # by name, on the CPU; empty: as before any training


class TunedWeights(Protocol):
    """A way to change a base model for a while."""

    base: BaseModel

    @property
    def form(self) -> str:
        """`full` or `lora`."""
        ...

    @property
    def adapter_numbers(self) -> int:
        """Numbers that run beside the base model's own: r (d_in + d_out) summed over LoRA's targets; 0 for full."""
        ...

    @property
    def num_floats(self) -> int:
        """Numbers that training changes."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that tells this way from others, beside the base model; plain JSON values."""
        ...

    @contextmanager
    def applied(self, values: Values, *, trainable: bool = False) -> Iterator[dict[str, nn.Parameter]]:
        """While open, the base model runs with these values; afterwards it is what it was, bit by bit.

        Yields:
            The changed parameters by name, with gradients where they are `trainable`.
        """
        ...

    def training_flops(self, num_tokens: float, row_tokens: float, head_tokens: float) -> float:
        """Operations of a forward and a backward pass over n tokens in rows of c, with the head at m of them."""
        ...


class FullWeights:
    """All of a model's weights.

    Args:
        base: the base model.
    """

    form = "full"
    adapter_numbers = 0

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self._sizes = base_sizes(base.model)

    @property
    def num_floats(self) -> int:
        """The base model's parameters."""
        return self._sizes.num_parameters

    @property
    def settings(self) -> Mapping[str, Any]:
        """The form."""
        return {"form": self.form}

    @contextmanager
    def applied(self, values: Values, *, trainable: bool = False) -> Iterator[dict[str, nn.Parameter]]:
        """See `TunedWeights.applied`; a copy of the model's weights is kept meanwhile."""
        parameters = dict(self.base.model.named_parameters())
        own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        try:
            _copy(parameters, values)
            self.base.model.requires_grad_(trainable)
            yield parameters
        finally:
            self.base.model.requires_grad_(False)
            _copy(parameters, own)
            for parameter in parameters.values():
                parameter.grad = None

    def training_flops(self, num_tokens: float, row_tokens: float, head_tokens: float) -> float:
        """3 f, f being the forward pass with its head at m tokens; the backward goes to inputs and weights."""
        return 3 * forward_flops(self._sizes, num_tokens, row_tokens, head_tokens)


class LoraWeights:
    """LoRA on all linears of the Transformer blocks, through PEFT.

    Args:
        base: the base model.
        rank: r.
        alpha: the update is multiplied by alpha / r; None: 2 r.
        seed: of the first values of LoRA's A (its B starts at zero).

    Raises:
        ConfigError: when the rank is not positive.
    """

    form = "lora"

    def __init__(self, base: BaseModel, *, rank: int = 16, alpha: int | None = None, seed: int = 0) -> None:
        require(rank > 0, f"lora rank must be positive, got {rank}")
        self.base = base
        self.rank = rank
        self.alpha = 2 * rank if alpha is None else alpha
        self.seed = seed
        self._sizes: BaseSizes = base_sizes(base.model)

    @property
    def adapter_numbers(self) -> int:
        """R (d_in + d_out), summed."""
        return sum(self.rank * (i + o) for block in self._sizes.blocks for _, i, o in block.linears)

    @property
    def num_floats(self) -> int:
        """LoRA's parameters."""
        return self.adapter_numbers

    @property
    def settings(self) -> Mapping[str, Any]:
        """Form, rank, alpha and seed."""
        return {"form": self.form, "rank": self.rank, "alpha": self.alpha, "seed": self.seed}

    @contextmanager
    def applied(self, values: Values, *, trainable: bool = False) -> Iterator[dict[str, nn.Parameter]]:
        """See `TunedWeights.applied`.

        Raises:
            MissingDependencyError: when PEFT is not installed.
        """
        try:
            from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingDependencyError(
                "fine-tuning LoRA needs the package peft; pip install 'generative-adapter[eval]', or fine-tune all "
                "weights (the methods that end in -full)"
            ) from error
        model = self.base.model
        targets = [f"{block.path}.{name}" for block in self._sizes.blocks for name, _, _ in block.linears]
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=0.0,
            bias="none",
            target_modules=targets,
            fan_in_fan_out=is_transposed(find_linear(model, targets[0])),
        )
        devices = [self.base.device] if self.base.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            wrapped: Any = get_peft_model(model, config)
        try:
            wrapped.eval()
            parameters = {name: p for name, p in wrapped.named_parameters() if ".lora_" in name}
            _copy(parameters, values)
            for parameter in parameters.values():
                parameter.requires_grad_(trainable)
            yield parameters
        finally:
            wrapped.unload()
            vars(model).pop("peft_config", None)
            model.requires_grad_(False)

    def training_flops(self, num_tokens: float, row_tokens: float, head_tokens: float) -> float:
        """2 f + 4 n c a a block + 6 n P - 2 n W_1 - 2 n r d_in, P numbers of LoRA.

        The backward goes to inputs, and for LoRA to weights too; W_1 and d_in are of the first block's linears that
        read its input, to which nothing is given.
        """
        forward = forward_flops(self._sizes, num_tokens, row_tokens, head_tokens)
        attention = 4 * num_tokens * row_tokens * self._sizes.attention_width * len(self._sizes.blocks)
        first = sum(i * o + self.rank * i for _, i, o in self._sizes.blocks[0].input_linears)
        return 2 * forward + attention + 6 * num_tokens * self.adapter_numbers - 2 * num_tokens * first


@torch.no_grad()
def _copy(parameters: Mapping[str, nn.Parameter], values: Values) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
