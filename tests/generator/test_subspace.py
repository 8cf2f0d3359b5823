"""Subspace iteration against the exact SVD, its values and gradients, and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from generative_adapter.config import TargetShape
from generative_adapter.generator import subspace
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.generator.normalization import factorize, normalize
from generative_adapter.generator.subspace import OVERSAMPLING, first_directions, subspace_polar

WIDTH, RANK, ITERATIONS = 53, 7, 3
NUM_COLUMNS = RANK + OVERSAMPLING


def with_spectrum(values: Tensor | list[float], seed: int = 0) -> Tensor:
    """A random float64 matrix with these singular values."""
    values = torch.as_tensor(values, dtype=torch.float64)
    draws = torch.randn(2, len(values), len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left, right = torch.linalg.qr(draws).Q
    return left @ torch.diag(values) @ right.mT


def with_a_gap(seed: int = 0) -> Tensor:
    """Seven singular values from 3 to 2, and all the others from 1 down."""
    return with_spectrum(torch.cat([torch.linspace(3, 2, RANK), torch.linspace(1, 0.1, WIDTH - RANK)]), seed)


def few_tokens(num_tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Values and keys, `[tokens, d_r]` each."""
    draws = torch.randn(2, num_tokens, WIDTH, generator=torch.Generator().manual_seed(num_tokens), dtype=dtype)
    return draws[0], draws[1]


def exact(state: Tensor, rank: int = RANK) -> Tensor:
    """The same by an exact SVD in the number format of the state."""
    left, _, right = torch.linalg.svd(state)
    return left[..., :rank] @ right[..., :rank, :]


def exact_gradient(state: Tensor, weights: Tensor, rank: int = RANK) -> Tensor:
    """Of sum(P * weights), summed over pairs of one kept and any other singular direction."""
    left, values, right = torch.linalg.svd(state)
    inner = left.mT @ weights @ right.mT
    core = torch.zeros_like(state)
    for i in range(rank):
        for j in range(len(values)):
            s, t = values[i], values[j]
            if j < rank:
                core[i, j] = (inner[i, j] - inner[j, i]) / (s + t)
            else:
                core[i, j] = (s * inner[i, j] + t * inner[j, i]) / (s * s - t * t)
                core[j, i] = (s * inner[j, i] + t * inner[i, j]) / (s * s - t * t)
    return left @ core @ right


def gradient(state: Tensor, weights: Tensor, iterations: int = ITERATIONS) -> Tensor:
    state = state.clone().requires_grad_()
    (found,) = torch.autograd.grad((subspace_polar(state, RANK, iterations) * weights).sum(), state)
    return found


def distance(actual: Tensor, expected: Tensor) -> float:
    return (torch.linalg.norm(actual.double() - expected) / torch.linalg.norm(expected)).item()


def random_weights(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("factor", [1e-20, 1.0, 1e25])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_exact_svd_where_there_is_a_gap(seed: int, factor: float) -> None:
    state = with_a_gap(seed)
    scaled = (factor * state).float()
    assert distance(subspace_polar(scaled, RANK, ITERATIONS), exact(state)) < 5e-6
    left, values, right = first_directions(scaled, RANK, ITERATIONS)
    assert left.shape == right.shape == (WIDTH, NUM_COLUMNS)
    torch.testing.assert_close(values[:RANK].double() / factor, torch.linspace(3, 2, RANK).double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(left.mT @ left, torch.eye(NUM_COLUMNS), rtol=0, atol=1e-5)
    torch.testing.assert_close(right.mT @ right, torch.eye(NUM_COLUMNS), rtol=0, atol=1e-5)


def test_each_iteration_brings_it_nearer_where_the_spectrum_decays_slowly() -> None:
    """200 x 200, r = 16, s_i = 1 / sqrt(i): `torch.svd_lowrank` with one iteration is far off."""
    state = with_spectrum(torch.arange(1, 201) ** -0.5)
    expected = exact(state, 16)
    errors = [distance(subspace_polar(state.float(), 16, iterations), expected) for iterations in (1, 2, 4, 8)]
    assert errors[0] < 0.25 and errors[1] < 0.06 and errors[2] < 0.006 and errors[3] < 1e-4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        left, _, right = torch.svd_lowrank(state.float(), q=16, niter=1)
    assert distance(left @ right.mT, expected) > 0.4


@pytest.mark.parametrize("num_tokens", [1, 3, RANK, RANK + 2, NUM_COLUMNS - 1])
def test_contexts_of_few_tokens_give_one_direction_a_token(num_tokens: int) -> None:
    """States of fewer dimensions than the block, and than the rank, have no noise raised to one."""
    values, keys = few_tokens(num_tokens)
    state = values.mT @ keys
    polar = subspace_polar(state, RANK, ITERATIONS).double()
    count = min(num_tokens, RANK)
    found = torch.linalg.svdvals(polar)
    torch.testing.assert_close(found, (torch.arange(WIDTH) < count).double(), rtol=0, atol=2e-5)
    torch.testing.assert_close(polar, exact(state.double(), count), rtol=0, atol=1e-4)


def test_a_zero_state_gives_zeros_and_no_gradient() -> None:
    states = torch.stack([with_a_gap(0), torch.zeros(WIDTH, WIDTH).double(), with_a_gap(1)]).float().requires_grad_()
    polar = subspace_polar(states, RANK, ITERATIONS)
    assert not polar[1].any() and polar[0].norm() > 2
    polar.square().sum().backward()
    assert states.grad is not None and torch.isfinite(states.grad).all() and not states.grad[1].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_state_that_is_not_finite_gives_nan_and_spares_the_others(value: float) -> None:
    states = torch.stack([with_a_gap(seed) for seed in range(3)]).float()
    expected = subspace_polar(states, RANK, ITERATIONS)
    states[1, 2, 5] = value
    polar = subspace_polar(states.requires_grad_(), RANK, ITERATIONS)
    assert polar[1].isnan().all()
    torch.testing.assert_close(polar[[0, 2]], expected[[0, 2]])
    (found,) = torch.autograd.grad(polar[[0, 2]].sum(), states)
    assert torch.isfinite(found[[0, 2]]).all()


def test_the_same_state_gives_the_same_bits_and_no_random_state_moves() -> None:
    state = with_spectrum(torch.arange(1, WIDTH + 1) ** -0.5).float()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = subspace_polar(state, RANK, 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(5)
    subspace._start.cache_clear()
    assert torch.equal(subspace_polar(state.clone(), RANK, 1).view(torch.int32), first.view(torch.int32))


def test_a_batch_equals_a_loop() -> None:
    states = torch.stack([with_spectrum(torch.arange(1, WIDTH + 1) ** -0.5, seed) for seed in range(6)]).float()
    states = states.view(2, 3, WIDTH, WIDTH)
    batched = subspace_polar(states, RANK, 1)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(batched[i, j], subspace_polar(states[i, j], RANK, 1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e6])
def test_nearly_dependent_columns_are_made_orthonormal(condition: float) -> None:
    """A Cholesky decomposition of the Gram matrix alone fails from about 3e3 in float32."""
    spectrum = torch.logspace(0, -torch.tensor(condition).log10().item(), NUM_COLUMNS, dtype=torch.float64)
    columns = with_spectrum(torch.cat([spectrum, torch.zeros(WIDTH - NUM_COLUMNS)]))
    turned = columns @ torch.linalg.svd(columns).Vh.mT[:, :NUM_COLUMNS]
    basis = subspace._orthonormal(turned.float()).double()
    torch.testing.assert_close(basis.mT @ basis, torch.eye(NUM_COLUMNS).double(), rtol=0, atol=1e-4)
    outside = turned - basis @ (basis.mT @ turned)
    assert outside.norm() < 1e-5 * turned.norm()


# ---------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("seed", range(3))
def test_finite_differences(seed: int) -> None:
    width, rank = 37, 3
    spectrum = torch.cat([torch.tensor([3.0, 3.0, 2.0]), torch.linspace(1, 0, width - rank)])
    state = with_spectrum(spectrum, seed).requires_grad_()
    assert gradcheck(lambda state: subspace_polar(state, rank, 12), state, fast_mode=True, atol=1e-6)


@pytest.mark.parametrize("num_tokens", [1, 3, RANK, RANK + 1])
def test_finite_differences_of_a_context_of_few_tokens(num_tokens: int) -> None:
    values, keys = (part.requires_grad_() for part in few_tokens(num_tokens, torch.float64))
    assert gradcheck(
        lambda values, keys: subspace_polar(values.mT @ keys, RANK, 3), (values, keys), fast_mode=True, atol=1e-6
    )


def test_gradient_equals_that_of_the_exact_svd() -> None:
    weights = random_weights(3, WIDTH, WIDTH)
    states = torch.stack([with_a_gap(seed) for seed in range(3)])
    found = gradient(states.float(), weights.float())
    for row in range(3):
        assert distance(found[row], exact_gradient(states[row], weights[row])) < 1e-4
    single = normalize(states.float().requires_grad_(), "svd", RANK)
    assert distance(single.detach(), exact(states)) < 5e-6


def test_sweeps_find_what_lies_outside_of_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a flat rest of the spectrum the block holds an arbitrary part of it; the sweeps find the other."""
    state = with_spectrum([3.0] * RANK + [1.5] * (WIDTH - RANK))
    weights = random_weights(WIDTH, WIDTH)
    expected = exact_gradient(state, weights)
    errors = []
    for num_sweeps in (0, 2, 4, 16):
        monkeypatch.setattr(subspace, "_NUM_SWEEPS", num_sweeps)
        errors.append(distance(gradient(state, weights, 30), expected))
    assert errors[0] > 0.05
    assert errors[1] < errors[0] / 10 and errors[2] < errors[1] / 10 and errors[3] < 1e-8


@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e-3])
def test_gradient_is_bounded_where_the_cut_splits_nearly_equal_values(gap: float) -> None:
    state = with_spectrum([3.0] * (RANK - 1) + [1 + gap, 1.0] + [0.5] * (WIDTH - RANK - 1))
    weights = random_weights(WIDTH, WIDTH)
    found = gradient(state.float(), weights.float(), 8)
    assert torch.isfinite(found).all() and found.norm() < 20 * weights.norm()
    if gap:
        assert exact_gradient(state, weights).norm() > found.norm()


def test_gradient_is_finite_where_all_values_are_equal() -> None:
    found = gradient(2.0 * torch.eye(WIDTH), random_weights(WIDTH, WIDTH).float())
    assert torch.isfinite(found).all() and found.any()


# -------------------------------------------------------------------------------------------------- where it is used


def test_normalize_and_factorize_take_it() -> None:
    state = with_spectrum(torch.arange(1, WIDTH + 1) ** -0.5).float()
    rough = normalize(state, "svd", RANK, subspace_iterations=1)
    assert torch.equal(rough, subspace_polar(state, RANK, 1))
    assert distance(rough, exact(state.double())) > 1e-3  # it isn't the exact one
    left, right = factorize(state, "svd", RANK, subspace_iterations=1)
    assert right is not None and left.shape == (WIDTH, RANK) and right.shape == (RANK, WIDTH)
    torch.testing.assert_close(left @ right, rough, rtol=0, atol=1e-6)
    assert normalize(state.bfloat16(), "svd", RANK, subspace_iterations=1).dtype == torch.float32


def test_where_the_block_would_be_as_wide_as_the_state_the_svd_is_exact() -> None:
    state = with_spectrum(torch.arange(1, NUM_COLUMNS + 1) ** -0.5).float()
    assert torch.equal(normalize(state, "svd", RANK, subspace_iterations=1), normalize(state, "svd", RANK))
    for iterated, plain in zip(factorize(state, "svd", RANK, 1), factorize(state, "svd", RANK), strict=True):
        assert iterated is not None and plain is not None and torch.equal(iterated, plain)


def test_a_generator_reads_and_makes_adapters_with_it() -> None:
    target = TargetShape("t", 0, 11, 13)
    torch.manual_seed(0)
    generator = AdapterGenerator(
        [target], 17, state_dim=WIDTH, rank=RANK, normalization="svd", scale=0.5, subspace_iterations=1
    )
    torch.nn.init.normal_(generator["t"].output_proj)
    state = with_spectrum(torch.arange(1, WIDTH + 1) ** -0.5).float()
    expected = subspace_polar(state, RANK, 1)
    assert torch.equal(generator.normalize(state.unsqueeze(0))[0], expected)
    wanted = 0.5 * generator["t"].output_proj @ expected @ generator["t"].query_proj
    torch.testing.assert_close(generator.adapter({"t": state})["t"].delta(), wanted.detach(), rtol=1e-4, atol=1e-4)
