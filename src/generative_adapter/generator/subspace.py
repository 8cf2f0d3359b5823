"""The first singular directions of a state by subspace iteration: matrix products instead of a d_r x d_r SVD.

A block of r + 32 columns is multiplied by M and M^T in turn, and only a matrix as small as the block gets an exact SVD.
The start of the iteration is fixed, so the same state gives the same result bit for bit, and no global random state is
read or moved. Leaves out: the exact SVD and the other normalisations (`normalization`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

TINY = 1e-30
OVERSAMPLING = 32
_NUM_PASSES = 3  # each divides a condition number by about 1 / sqrt(rounding error): float32 is used up after three
_NUM_SWEEPS = 4
_LEAST_GAP = 0.01
_SEED = 20_241_105


def kept_directions(values: Tensor, rank: int, width: int) -> Tensor:
    """1 for the singular values that count, 0 for the others; eqs. (7)-(8), arXiv:2411.05877.

    Args:
        values: descending, `[..., number of values]`.
        rank: r; later ones don't count.
        width: d_r; those below d_r rounding errors of the largest are zero but for rounding, and don't count.
    """
    largest = values[..., :1]
    tolerance = largest * (width * torch.finfo(values.dtype).eps)
    first = torch.arange(values.shape[-1], device=values.device) < rank
    return ((values > tolerance) & (largest > TINY) & first).to(values.dtype)


def is_narrow(rank: int, width: int) -> bool:
    """Whether subspace iteration is cheaper than the exact SVD: its block has fewer columns than the state."""
    return rank + OVERSAMPLING < width


def first_directions(state: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first r + 32 singular triplets of M, with zeros for those of zero singular values.

    Direction i is off by about (s_(r+33) / s_i)^(2 iterations + 1): the first r are what is wanted, the last ones are
    rough. A state that isn't finite gives NaN.

    Args:
        state: M, `[..., d_r, d_r]`.
        rank: r, with r + 32 < d_r.
        iterations: how often the block is multiplied by M^T and M beyond the first product.

    Returns:
        U `[..., d_r, r + 32]`, the singular values `[..., r + 32]` and V `[..., d_r, r + 32]`.
    """
    width = state.shape[-1]
    size = state.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(TINY)
    scaled = state / size
    left = _orthonormal(scaled @ _start(width, rank + OVERSAMPLING).to(state))
    for _ in range(iterations):
        left = _orthonormal(scaled @ _orthonormal(scaled.mT @ left))
    image = scaled.mT @ left
    right = _orthonormal(image)
    core = image.mT @ right  # U^T M V within both subspaces
    finite = torch.isfinite(core).flatten(-2).all(-1)[..., None, None]
    turn_left, values, turn_right = torch.linalg.svd(core.where(finite, 0.0))
    values = values * size.squeeze(-1)
    positive = kept_directions(values, rank + OVERSAMPLING, width).where(finite.squeeze(-1), torch.nan)
    left = (left @ turn_left).where(finite, 0.0) * positive.unsqueeze(-2)
    right = (right @ turn_right.mT).where(finite, 0.0) * positive.unsqueeze(-2)
    return left, values * positive, right


def subspace_polar(state: Tensor, rank: int, iterations: int) -> Tensor:
    """P = U V^T of the first r singular directions of M, eq. (8), arXiv:2411.05877; differentiable.

    Args:
        state: M, `[..., d_r, d_r]`.
        rank: r, with r + 32 < d_r.
        iterations: see `first_directions`.
    """
    return _SubspacePolar.apply(state, rank, iterations)  # type: ignore[no-any-return]


class _SubspacePolar(torch.autograd.Function):
    """P = U V^T of the first r directions, with the backward of the exact P by matrix products.

    Let B and C be what dU and dV have outside of the kept directions, and R = (I - U U^T) M (I - V V^T) the discarded
    rest of M. Differentiating M V = U S and M^T U = V S gives

        B S - R C = (I - U U^T) dM V,    C S - R^T B = (I - V V^T) dM^T U,

    and dP = B V^T + U C^T + U K V^T with K_ij = (X_ij - X_ji) / (s_i + s_j), X = U^T dM V. The left-hand side is its
    own adjoint. So for a gradient G of P let Y S - R W = (I - U U^T) G V and W S - R^T Y = (I - V V^T) G^T U; then the
    gradient of M is Y V^T + U W^T + U K' V^T, with K' made from U^T G V as K from X.

    Along the 32 further directions j that the forward found, Y and W are known: for b and c, the parts of the
    right-hand sides along u_j and v_j, they are (s_i b + s_j c) / (s_i^2 - s_j^2) and (s_i c + s_j b) / (s_i^2 -
    s_j^2). From there a fixed number of sweeps Y = (... + R W) / S, W = (... + R^T Y) / S adds the rest, whose error
    shrinks by (s_(r+33) / s_i)^2 each. Where a kept and a discarded value nearly coincide the true gradient has no
    bound; here s_i^2 - s_j^2 counts as one per cent of s_i^2 at least.
    """

    @staticmethod
    def forward(ctx: Any, state: Tensor, rank: int, iterations: int) -> Tensor:
        left, values, right = first_directions(state, rank, iterations)
        ctx.save_for_backward(state, left, values, right)
        return left[..., :rank] @ right[..., :rank].mT

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        state, left, values, right = ctx.saved_tensors
        rank = values.shape[-1] - OVERSAMPLING
        left, near_left = left.tensor_split([rank], dim=-1)
        right, near_right = right.tensor_split([rank], dim=-1)
        kept, near = values.tensor_split([rank], dim=-1)
        inverse = torch.where(kept > 0, 1 / kept.clamp_min(TINY), 0.0).unsqueeze(-2)
        of_left, of_right = gradients[0] @ right, gradients[0].mT @ left
        inner = left.mT @ of_left
        of_left, of_right = of_left - left @ inner, of_right - right @ inner.mT
        along_left, along_right = near_left.mT @ of_left, near_right.mT @ of_right
        ratio = near.unsqueeze(-1) * inverse
        gap = (1 - ratio.square()).clamp_min(_LEAST_GAP)
        outer_left = of_left + near_left @ ((along_left + ratio * along_right) / gap - along_left)
        outer_right = of_right + near_right @ ((along_right + ratio * along_left) / gap - along_right)
        outer_left, outer_right = outer_left * inverse, outer_right * inverse
        for _ in range(_NUM_SWEEPS):
            outer_left = (of_left + _outside(left, state @ outer_right)) * inverse
            outer_right = (of_right + _outside(right, state.mT @ outer_left)) * inverse
        sums = (kept.unsqueeze(-1) + kept.unsqueeze(-2)).clamp_min(TINY)
        core = (inner - inner.mT) / sums
        return outer_left @ right.mT + left @ (outer_right + right @ core.mT).mT, None, None


def _outside(basis: Tensor, columns: Tensor) -> Tensor:
    """What columns have outside of an orthonormal basis."""
    return columns - basis @ (basis.mT @ columns)


def _orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of what `[..., d_r, columns]` span, by Cholesky decompositions of their Gram matrices.

    Each is shifted by its rounding error, so that it exists for dependent and for zero columns too: what they lack in
    dimensions comes out as columns next to zero. NaN where it doesn't exist all the same.
    """
    identity = torch.eye(columns.shape[-1], dtype=columns.dtype, device=columns.device)
    rounding = torch.finfo(columns.dtype).eps * columns.shape[-2] ** 0.5
    for _ in range(_NUM_PASSES):
        gram = columns.mT @ columns
        shift = (gram.abs().sum(-1).amax(-1) * rounding).clamp_min(TINY)[..., None, None]
        factor, failed = torch.linalg.cholesky_ex(gram + shift * identity)
        factor = factor.where((failed == 0)[..., None, None], torch.nan)
        columns = torch.linalg.solve_triangular(factor.mT, columns, upper=True, left=False)
    return columns


@lru_cache(maxsize=8)
def _start(width: int, num_columns: int) -> Tensor:
    """The columns that every iteration starts from, `[d_r, columns]`."""
    with torch.inference_mode(False):
        return torch.randn(width, num_columns, generator=torch.Generator().manual_seed(_SEED))
