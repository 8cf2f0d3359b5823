"""Operations of a generator's own arithmetic: normalisation, and making an adapter of a context. Formulas only.

A multiplication and an addition are two operations. Normalisation, forward and backward, of one state of d = d_r:

    svd                 22 d^3 and 8 d^3 (exact); with i `subspace_iterations`, r = rank, q = r + 32 < d:
                        (2 i + 2) (2 d^2 q + 9 d q^2) + 6 d q^2 + 20 q^3 + 2 d^2 r and 24 d^2 r + 40 d r^2 + 256 d r
    newton_schulz       36 d^3 and 84 d^3
    ridge               4 d^3 and 8 d^3
    frobenius           3 d^2 and 6 d^2

A chunk of n tokens is written, per target, with d_h the hidden width, s numbers of a state (d_r^2, twice that for
`ridge`) and k projected columns (2 d_r, one d_r a key window, gates):

    keys and values     2 n d_h k, windows 2 n^2 d_r each
    memory              2 n s
    factors             2 d_r r (d_in + d_out) for `svd`, else 2 d_r r d_out, once an adapter is made

With an encoder of width w and m layers over b block inputs, one memory of d_v = r wide values for all targets:

    encoder             2 n b d_h w + m (16 n w^2 + 4 n^2 w)
    keys and values     2 n (w d_r + d_v (d_h + w) + w)
    memory              2 n (d_v + d_r) d_r
    surroundings        2 n d_h (N + 1) + 2 n^2 N, for the last N numbers of a key, less 2 n w N
    adapter             2 (d_r - N)^3 + 2 d_v d_r^2, and 2 d_v d_r d_in a target

Where units take tokens, the sums are made with the adapter, of the rows that the memory keeps, and each of their blocks
whitens the keys it takes, 2 n d_r^2 where it takes n.

Leaves out: passes of the base model (`base_model.costs`) and of training (`training.pass_costs`).
"""

from __future__ import annotations

from collections.abc import Sequence

from generative_adapter.config import EncoderConfig, GeneratorConfig, TargetShape
from generative_adapter.generator.subspace import OVERSAMPLING, is_narrow


def normalization_flops(config: GeneratorConfig) -> tuple[float, float]:
    """Operations of one state's normalisation, forward and backward; formulas at the top of this module."""
    width, rank = config.state_dim, config.rank
    if iterates(config):
        block = rank + OVERSAMPLING
        once = 2 * width**2 * block + 9 * width * block**2  # a product, and three passes that make it orthonormal
        forward = (2 * config.subspace_iterations + 2) * once + 6 * width * block**2 + 20 * block**3
        backward = 24 * width**2 * rank + 40 * width * rank**2 + 8 * OVERSAMPLING * width * rank
        return float(forward + 2 * width**2 * rank), float(backward)
    forward, backward = {"svd": (22, 8), "newton_schulz": (36, 84), "ridge": (4, 8)}.get(config.normalization, (0, 0))
    if config.normalization == "frobenius":
        return 3.0 * width**2, 6.0 * width**2
    return float(forward) * width**3, float(backward) * width**3


def iterates(config: GeneratorConfig) -> bool:
    """Whether `svd` is found by subspace iteration."""
    return bool(config.subspace_iterations) and is_narrow(config.rank, config.state_dim)


def key_width(config: GeneratorConfig) -> int:
    """Columns projected from a target's own hidden states: k of the formulas, without values taken from elsewhere."""
    gates = 2 * len(config.key_windows) * config.window_gates + config.write_gate
    own_values = config.state_dim if config.value_layer is None else 0
    return own_values + config.state_dim * (1 + len(config.key_windows)) + gates


def writing_flops(config: GeneratorConfig, num_targets: int, hidden_size: int, num_tokens: int) -> float:
    """Operations that add one chunk to the memories of all targets.

    Args:
        config: of the generator.
        num_targets: how many there are.
        hidden_size: d_h.
        num_tokens: n, of the chunk.
    """
    width = config.state_dim
    if config.encoder is not None:
        return _encoder_writing_flops(config, config.encoder, hidden_size, num_tokens)
    state = width * width * (2 if config.normalization == "ridge" else 1)
    elsewhere = 0 if config.value_layer is None else width
    windows = 2 * len(config.key_windows) * num_tokens**2 * width
    return num_targets * (2 * num_tokens * (hidden_size * (key_width(config) + elsewhere) + state) + windows)


def adapter_flops(
    config: GeneratorConfig, targets: Sequence[TargetShape], num_rows: int = 0, num_units: int = 0
) -> float:
    """Operations that make an adapter of the memories of all targets: normalisation and factors.

    The directions of `svd` go into the factors as they are, without the product U V^T of its normalisation.

    Args:
        config: of the generator.
        targets: the linears that read the memory.
        num_rows: of the memory; they matter where units take tokens.
        num_units: tokens that the units of all blocks have taken.
    """
    width, decomposed = config.state_dim, config.normalization == "svd"
    if config.encoder is not None:
        inputs = sum(target.in_features for target in targets)
        once = 2 * (width - config.encoder.surroundings_dim) ** 3 + 2 * config.rank * width * (width + inputs)
        sums = 2 * num_rows * (config.rank + width) * width if config.encoder.unit_layers else 0
        return float(once + sums + 2 * num_units * width**2)
    widths = sum(target.out_features + target.in_features * decomposed for target in targets)
    normalization = normalization_flops(config)[0]
    if decomposed:
        normalization -= 2 * width**2 * (config.rank if iterates(config) else width)
    return len(targets) * normalization + 2 * width * config.rank * widths


def _encoder_writing_flops(config: GeneratorConfig, encoder: EncoderConfig, hidden_size: int, num_tokens: int) -> float:
    """Operations that encode one chunk and add it to the one memory; formulas at the top of this module."""
    width, values, keys, coded = encoder.width, config.rank, config.state_dim, encoder.surroundings_dim
    encoded = 2 * num_tokens * (1 + len(encoder.states)) * hidden_size * width
    encoded += encoder.layers * (16 * num_tokens * width**2 + 4 * num_tokens**2 * width)
    projected = 2 * num_tokens * (width * (keys - coded) + values * (hidden_size + width) + width)
    if coded:
        projected += 2 * num_tokens * (hidden_size * (coded + 1) + num_tokens * coded)
    sums = 0 if encoder.unit_layers else 2 * num_tokens * (values + keys) * keys
    return float(encoded + projected + sums)
