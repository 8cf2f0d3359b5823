"""What a frozen base model costs: parameters, floating-point operations, activation bytes. Arithmetic only.

A multiplication and an addition are two operations; only matrix products are counted, as torch's own counter does.
With n tokens in rows of c tokens, W_l the products d_in * d_out summed over the linears of block l, a the attention's
width (heads * head width), m supervised positions, d_h the hidden width and V the vocabulary:

    forward     sum over l of (2 n W_l + 4 n c a) + 2 m d_h V
    backward    the same for linears and head (to their inputs; weights are frozen), 8 n c a for attention

Attention is counted over whole rows, masked or not; of the block where gradients end, a feed-forward part that stands
beside attention rather than behind it is counted too. Leaves out: embeddings, norms and activations (less than a per
cent), mixtures of experts (only linears are seen), state-space and convolutional blocks, and the generator
(`training.pass_costs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from generative_adapter.base_model.targets import ROLES, find_blocks, linear_shape
from generative_adapter.errors import BaseModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Operations / (n c a) of attention's backward when only this linear's output has a gradient.
_THROUGH_ATTENTION = {"v_proj": 2, "q_proj": 4, "k_proj": 4}


@dataclass(frozen=True)
class BlockSizes:
    """The linears of one Transformer block.

    Attributes:
        path: of the block in the model.
        linears: (name inside the block, d_in, d_out), in the order of the modules.
    """

    path: str
    linears: tuple[tuple[str, int, int], ...]

    @property
    def weights(self) -> int:
        """W_l."""
        return _products(self.linears)

    @property
    def input_linears(self) -> tuple[tuple[str, int, int], ...]:
        """Those that read the block's input: the attention's but for its output; no parallel feed-forward."""
        siblings = self._attention()
        return tuple(each for each in self.linears if each[0] in siblings and each[0] not in ROLES["attention_output"])

    def _attention(self) -> set[str]:
        """Names of q, k, v and output, or what a family has for them."""
        output = next((name for name, _, _ in self.linears if name in ROLES["attention_output"]), "")
        return {name for name, _, _ in self.linears if name.rpartition(".")[0] == output.rpartition(".")[0]}

    def after(self, target: str) -> tuple[tuple[tuple[str, int, int], ...], int]:
        """What comes after a target: the linears, and x of the x n c a operations of attention's backward.

        Args:
            target: path in the model of the block's first target, in the order of the modules.
        """
        names = [name for name, _, _ in self.linears]
        own = target.removeprefix(f"{self.path}.")
        output = next((name for name in names if name in ROLES["attention_output"]), "")
        siblings = self._attention()
        if own not in siblings:
            later = names[names.index(own) + 1 :]
            return tuple(each for each in self.linears if each[0] in later and each[0] not in siblings), 0
        behind = tuple(each for each in self.linears if each[0] not in siblings)
        if own == output:
            return behind, 0
        attention = tuple(each for each in self.linears if each[0] == output)
        return attention + behind, _THROUGH_ATTENTION.get(own.rpartition(".")[2], 8)


@dataclass(frozen=True)
class BaseSizes:
    """A base model's sizes.

    Attributes:
        num_parameters: tied ones once.
        hidden_size: d_h.
        vocab_size: V, outputs of the language-model head.
        num_heads: attention heads.
        attention_width: a, heads times width of a head.
        blocks: the Transformer blocks.
    """

    num_parameters: int
    hidden_size: int
    vocab_size: int
    num_heads: int
    attention_width: int
    blocks: tuple[BlockSizes, ...]


def base_sizes(model: PreTrainedModel) -> BaseSizes:
    """The sizes of a model, which may be on the meta device.

    Raises:
        UnsupportedArchitectureError: when no Transformer blocks are found.
        BaseModelError: when it has no language-model head.
    """
    path, blocks = find_blocks(model)
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        raise BaseModelError(f"{type(model).__name__} has no output embeddings; pass a causal language model")
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return BaseSizes(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        hidden_size=config.hidden_size,
        vocab_size=shape[1] if (shape := linear_shape(head)) else head.weight.shape[0],
        num_heads=config.num_attention_heads,
        attention_width=config.num_attention_heads * head_width,
        blocks=tuple(
            BlockSizes(
                f"{path}.{layer}",
                tuple((name, *shape) for name, module in block.named_modules() if (shape := linear_shape(module))),
            )
            for layer, block in enumerate(blocks)
        ),
    )


def forward_flops(
    sizes: BaseSizes, num_tokens: float, row_tokens: float, head_tokens: float = 0, num_blocks: int | None = None
) -> float:
    """Operations of a forward pass: sum over l of (2 n W_l + 4 n c a) + 2 m d_h V.

    Args:
        sizes: of the base model.
        num_tokens: n, computed tokens, padding included.
        row_tokens: c, tokens of a row, each of which attends to all.
        head_tokens: m, positions at which the head runs.
        num_blocks: of a pass that ends behind so many blocks; None: all run.
    """
    run = sizes.blocks[:num_blocks]
    blocks = sum(2 * num_tokens * block.weights for block in run)
    attention = 4 * num_tokens * row_tokens * sizes.attention_width * len(run)
    return blocks + attention + 2 * head_tokens * sizes.hidden_size * sizes.vocab_size


def backward_flops(
    sizes: BaseSizes, num_tokens: float, row_tokens: float, head_tokens: float, first_layer: int, first_target: str
) -> float:
    """Operations of a backward pass through the frozen base, down to the lowest target.

    Sum over the blocks above the lowest target's of (2 n W_l + 8 n c a), in its own block what comes after the target,
    and 2 m d_h V. Nothing below has a gradient.

    Args:
        sizes: of the base model.
        num_tokens: n, tokens of the rows with gradients, padding included.
        row_tokens: c.
        head_tokens: m.
        first_layer: block of the lowest target.
        first_target: path of the first target in it, in the order of the modules.
    """
    attention = num_tokens * row_tokens * sizes.attention_width
    own, through = sizes.blocks[first_layer].after(first_target)
    total = 2 * num_tokens * _products(own) + through * attention
    total += sum(2 * num_tokens * block.weights + 8 * attention for block in sizes.blocks[first_layer + 1 :])
    return total + 2 * head_tokens * sizes.hidden_size * sizes.vocab_size


def activation_bytes(
    sizes: BaseSizes,
    num_tokens: float,
    row_tokens: float,
    number_bytes: int,
    *,
    attention: str,
    checkpointing: bool,
    first_layer: int,
    first_target: str,
) -> float:
    """About how much a forward pass keeps of its blocks for the backward pass; an upper estimate.

    A token of a block keeps the output of every linear, the attention's output and the input of the widest linear
    (`number_bytes` each) and the inputs of two norms in float32; `grouped` attention also its weights, heads * c, and
    `eager` those and their float32 copy. Of the lowest target's block it is what comes after the target. With
    checkpointing every block keeps its input, and one block at a time all of that.

    Args:
        sizes: of the base model.
        num_tokens: n, tokens of the rows with gradients, padding included.
        row_tokens: c.
        number_bytes: bytes of a number of the base model.
        attention: attention kernel, `eager`, `grouped` or `sdpa`.
        checkpointing: whether blocks are computed again in the backward pass.
        first_layer: block of the lowest target.
        first_target: path of the first target in it, in the order of the modules.
    """
    attended = number_bytes * sizes.attention_width + 4 * sizes.hidden_size
    if attention == "eager":
        attended += sizes.num_heads * row_tokens * (4 + (number_bytes if number_bytes < 4 else 0))
    if attention == "grouped":
        attended += sizes.num_heads * row_tokens * number_bytes
    each = []
    for layer, block in enumerate(sizes.blocks[first_layer:], start=first_layer):
        linears, through = (block.after(first_target)) if layer == first_layer else (block.linears, 8)
        outputs = sum(outputs for _, _, outputs in linears)
        widest = max((inputs for _, inputs, _ in linears), default=0)
        kept = number_bytes * (outputs + widest) + 4 * sizes.hidden_size + (attended if through else 0)
        each.append(num_tokens * kept)
    if not checkpointing:
        return sum(each)
    return num_tokens * number_bytes * sizes.hidden_size * len(each) + max(each)


def _products(linears: Sequence[tuple[str, int, int]]) -> int:
    """d_in * d_out, summed."""
    return sum(inputs * outputs for _, inputs, outputs in linears)
