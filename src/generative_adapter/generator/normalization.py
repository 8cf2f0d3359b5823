"""Normalisation of a memory: `svd`, `frobenius`, `newton_schulz` (eqs. 6-9) and `ridge`, with stable gradients.

The first three take a batch of square states `[..., d_r, d_r]`; all work in float32. Nothing here is random, so the
same state gives the same result bit for bit. Leaves out: how `svd` is found without an SVD (`subspace`), and
`torch.svd_lowrank`, whose random start changes the adapter from call to call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from generative_adapter.generator.subspace import TINY, first_directions, is_narrow, kept_directions, subspace_polar

# Polar Express (arXiv:2505.16932): each row (a, b, c) is one odd quintic a X + b X X^T X + c (X X^T)^2 X. The first six
# take every singular value in [1e-3, 1] to within 0.12 % of one; repeating the last one would make that 0.015 %.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
)
NORMALIZATION_LABEL = "normalization"  # names this work in a profile (`torch.profiler.record_function`)


def normalize(
    state: Tensor, method: str, rank: int, backward_dtype: torch.dtype = torch.float32, subspace_iterations: int = 0
) -> Tensor:
    """The normalised memory norm(S), eqs. (6)-(8), arXiv:2411.05877; differentiable.

    Args:
        state: S, `[..., d_r, d_r]`.
        method: `svd`, `frobenius` or `newton_schulz`.
        rank: r, the number of singular directions `svd` keeps; the others keep all.
        backward_dtype: number format of the backward of `newton_schulz`; see there.
        subspace_iterations: of `svd`; 0: the exact SVD, which is also taken where r + 32 reaches d_r.

    Returns:
        norm(S), `[..., d_r, d_r]`, float32. An all-zero state gives zeros.
    """
    state = state.float()
    if method == "svd" and subspace_iterations and is_narrow(rank, state.shape[-1]):
        return subspace_polar(state, rank, subspace_iterations)
    if method == "svd":
        return _TruncatedPolar.apply(state, rank)  # type: ignore[no-any-return]
    if method == "frobenius":
        return frobenius(state)
    if method == "newton_schulz":
        return newton_schulz(state, backward_dtype)
    raise ValueError(f"unknown normalisation {method!r}")


def factorize(state: Tensor, method: str, rank: int, subspace_iterations: int = 0) -> tuple[Tensor, Tensor | None]:
    """Factors whose product is `normalize` of the same arguments, eq. (9), arXiv:2411.05877.

    Returns:
        For `svd`: U `[..., d_r, r]` and V^T `[..., r, d_r]`, with zeros in the directions of zero singular values. For
        the others: norm(S) itself and None, which stands for the identity.
    """
    state = state.float()
    if method == "svd" and subspace_iterations and is_narrow(rank, state.shape[-1]):
        left, _, right = first_directions(state, rank, subspace_iterations)
        return left[..., :rank], right[..., :rank].mT
    if method == "svd":
        left, values, right = torch.linalg.svd(state, full_matrices=False)
        kept = kept_directions(values, rank, state.shape[-1])[..., :rank]
        return left[..., :rank] * kept.unsqueeze(-2), right[..., :rank, :] * kept.unsqueeze(-1)
    return normalize(state, method, rank), None


def frobenius(state: Tensor) -> Tensor:
    """M / ||M||_F (section 5.1 of the paper), for states `[..., d_r, d_r]`."""
    squares = state.square().sum(dim=(-2, -1), keepdim=True)
    return state * torch.rsqrt(squares.clamp_min(TINY))


def ridge_inverse(state: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    """S and (C + strength * I)^-1 of `ridge`; see there."""
    width = state.shape[-1]
    values, keys = state.float().split([state.shape[-2] - width, width], dim=-2)
    return values, symmetric_inverse(keys + strength * torch.eye(keys.shape[-1], device=keys.device))


def ridge(state: Tensor, strength: Tensor) -> Tensor:
    """The least-squares map from keys to values, S (C + strength * I)^-1; differentiable.

    Read with one of its own keys it gives that key's value, however much keys have in common, where the polar factor
    gives mostly what the values have in common. Both sums are additive over chunks, as S of eq. (3) is. The strength is
    not relative to the size of C, so that what is read of one key does not shrink as a text grows.

    Args:
        state: S = sum_i v_i k_i^T above C = sum_i k_i k_i^T, `[..., d_v + d_r, d_r]`; in the paper's form d_v = d_r.
        strength: of the regularisation, in the units of squared keys, positive, broadcast over `[..., d_r, d_r]`.

    Returns:
        `[..., d_v, d_r]`, float32. An all-zero state gives zeros.
    """
    values, inverse = ridge_inverse(state, strength)
    return values @ inverse


def symmetric_inverse(matrix: Tensor) -> Tensor:
    """The inverse of symmetric matrices `[..., n, n]`, by Cholesky where they are positive definite; differentiable.

    Not by `torch.linalg.inv`, whose LU decomposition of a batch fails on some CPU builds with several threads (PyTorch
    2.13 with MKL, two matrices of 512 x 512 and two threads: an error, or no number). Matrices with numbers that
    aren't finite give NaN.
    """
    inverse: Tensor = _SymmetricInverse.apply(matrix)  # type: ignore[assignment]
    return inverse


class _SymmetricInverse(torch.autograd.Function):
    """X = M^-1; the gradient of M is -X G X."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        factor, failed = torch.linalg.cholesky_ex(matrix)
        inverse = torch.cholesky_inverse(factor)
        if bool(failed.any()):
            for index in failed.nonzero().tolist():
                inverse[tuple(index)] = _indefinite_inverse(matrix[tuple(index)])
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return -(inverse @ gradients[0] @ inverse)


def _indefinite_inverse(matrix: Tensor) -> Tensor:
    """The inverse of one symmetric matrix with eigenvalues below zero, such as rounding leaves in a stored memory."""
    if not bool(matrix.isfinite().all()):
        return torch.full_like(matrix, torch.nan)
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors / values) @ vectors.mT


def newton_schulz(state: Tensor, backward_dtype: torch.dtype = torch.float32) -> Tensor:
    """The polar factor of M by odd matrix polynomials: matrix products only, no SVD.

    Singular values above 1e-3 of the Frobenius norm land within 0.12 % of one, smaller ones stay below one, zeros stay
    zero; so weak directions are damped where eq. (7) would raise them to one.

    Args:
        state: M, `[..., d_r, d_r]`.
        backward_dtype: number format of the backward's matrix products. The forward is always float32, since its early
            steps multiply weak directions by up to eight each; a bfloat16 gradient is a few per cent off the exact one
            and several times as fast on processors with bfloat16 units.
    """
    polar: Tensor = _PolarExpress.apply(frobenius(state).reshape(-1, *state.shape[-2:]), backward_dtype)  # type: ignore[assignment]
    return polar.reshape(state.shape)


class _PolarExpress(torch.autograd.Function):
    """Composed quintics X' = a X + Q X, Q = b G + c G^2, G = X X^T, on `[batch, d_r, d_r]`.

    The backward is the chain rule written out in fused products, with only the X of each step kept: through automatic
    differentiation half the time on a CPU goes to scaling matrices. For a gradient g of X': dQ = g X^T,
    dG = b dQ + c (dQ G + G dQ), dX = a g + Q g + (dG + dG^T) X.
    """

    @staticmethod
    def forward(ctx: Any, polar: Tensor, backward_dtype: torch.dtype) -> Tensor:
        steps = []
        for a, b, c in _POLAR_EXPRESS:
            steps.append(polar)
            gram = torch.bmm(polar, polar.mT)
            polar = torch.baddbmm(polar, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), polar, beta=a)
        ctx.save_for_backward(*steps)
        ctx.backward_dtype = backward_dtype
        return polar

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        given = gradients[0].dtype
        dtype = given if ctx.backward_dtype == torch.float32 else ctx.backward_dtype
        gradient = gradients[0].to(dtype)
        for (a, b, c), polar in zip(reversed(_POLAR_EXPRESS), reversed(ctx.saved_tensors), strict=True):
            polar = polar.to(dtype)
            gram = torch.bmm(polar, polar.mT)
            outer = torch.bmm(gradient, polar.mT)
            inner = torch.baddbmm(outer, outer, gram, beta=b, alpha=c).baddbmm_(gram, outer, alpha=c)
            gradient = torch.baddbmm(gradient, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), gradient, beta=a)
            gradient.baddbmm_(inner + inner.mT, polar)
        return gradient.to(given), None


class _TruncatedPolar(torch.autograd.Function):
    """P = U_k V_k^T with an exact backward.

    With X = U^T dM V and f_i = 1 for kept directions, 0 for the others, P is an odd matrix function of M, so
    dP = U [C_s * (X + X^T)/2 + C_a * (X - X^T)/2] V^T, C_s = (f_i - f_j)/(s_i - s_j), C_a = (f_i + f_j)/(s_i + s_j).
    Among kept directions C_s is zero, so repeated singular values are harmless; the one gap left is the one at the cut,
    which is bounded below by the rounding error of s. A state that isn't finite gives NaN, as with the other methods
    (the SVD would raise), so that training can skip the step.
    """

    @staticmethod
    def forward(ctx: Any, state: Tensor, rank: int) -> Tensor:
        finite = torch.isfinite(state).flatten(-2).all(-1)[..., None, None]
        left, values, right = torch.linalg.svd(state.where(finite, 0.0), full_matrices=False)
        kept = kept_directions(values, rank, state.shape[-1])
        ctx.save_for_backward(left, values, right, kept)
        return ((left * kept.unsqueeze(-2)) @ right).where(finite, torch.nan)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        left, values, right, kept = ctx.saved_tensors
        inner = left.mT @ gradients[0] @ right.mT
        floor = (values[..., :1] * (values.shape[-1] * torch.finfo(values.dtype).eps)).clamp_min(TINY).unsqueeze(-1)
        total = values.unsqueeze(-1) + values.unsqueeze(-2)
        gap = values.unsqueeze(-1) - values.unsqueeze(-2)
        across = kept.unsqueeze(-1) - kept.unsqueeze(-2)
        symmetric = across.abs() / gap.abs().clamp_min(floor)
        antisymmetric = (kept.unsqueeze(-1) + kept.unsqueeze(-2)) / total.clamp_min(floor)
        core = symmetric * (inner + inner.mT) / 2 + antisymmetric * (inner - inner.mT) / 2
        return left @ core @ right, None
