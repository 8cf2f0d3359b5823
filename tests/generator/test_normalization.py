"""Normalisation against NumPy's SVD, scalar polynomials and finite differences (eqs. 6-9)."""

import numpy
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from generative_adapter.generator.normalization import (
    _POLAR_EXPRESS,
    _TruncatedPolar,
    factorize,
    frobenius,
    newton_schulz,
    normalize,
    ridge,
    symmetric_inverse,
)

WIDTH, RANK = 11, 7
METHODS = ("svd", "frobenius", "newton_schulz")
GRADIENT_SPECTRA = {
    "distinct": [3.0, 2.2, 1.5, 0.9, 0.4],
    "repeated": [3.0, 3.0, 3.0, 1.0, 1.0],
    "all equal": [2.0, 2.0, 2.0, 2.0, 2.0],
}


def rotations(seed: int, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Two random orthogonal matrices."""
    draws = torch.randn(2, width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left, right = torch.linalg.qr(draws).Q
    return left, right


def with_spectrum(values: list[float] | Tensor, seed: int = 0) -> Tensor:
    """A random float64 matrix with these singular values, the first factors of `rotations(seed)` being its vectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    left, right = rotations(seed, len(values))
    return left @ torch.diag(values) @ right.mT


def random_states(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numpy_polar(state: Tensor, rank: int) -> Tensor:
    left, _, right = numpy.linalg.svd(state.double().numpy())
    return torch.from_numpy(left[:, :rank] @ right[:rank])


def singular_values(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.double())


def polynomial(value: float) -> float:
    """What the six quintics make of one singular value."""
    for a, b, c in _POLAR_EXPRESS:
        value = a * value + b * value**3 + c * value**5
    return value


def truncated(rank: int):
    return lambda state: _TruncatedPolar.apply(state, rank)


# ---------------------------------------------------------------------------------------------------------- svd values


@pytest.mark.parametrize("rank", [1, RANK, WIDTH])
def test_svd_is_the_first_singular_directions_of_numpy(rank: int) -> None:
    state = with_spectrum(torch.linspace(5.0, 0.1, WIDTH)).float()
    torch.testing.assert_close(normalize(state, "svd", rank).double(), numpy_polar(state, rank), atol=2e-5, rtol=0)


def test_svd_without_a_cut_is_the_polar_factor() -> None:
    state = with_spectrum(torch.logspace(1, -2, WIDTH, dtype=torch.float64))
    gram_values, gram_vectors = torch.linalg.eigh(state.mT @ state)  # M (M^T M)^(-1/2), without any SVD of M
    polar = state @ gram_vectors @ torch.diag(gram_values.rsqrt()) @ gram_vectors.mT
    torch.testing.assert_close(truncated(WIDTH)(state), polar, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("num_positive", "rank"), [(1, RANK), (3, RANK), (3, 2), (RANK, RANK), (5, WIDTH)])
def test_only_positive_singular_values_are_raised_to_one(num_positive: int, rank: int) -> None:
    values = torch.zeros(WIDTH)
    values[:num_positive] = torch.linspace(4.0, 0.5, num_positive)
    state = with_spectrum(values).float()
    polar = normalize(state, "svd", rank).double()
    count = min(num_positive, rank)
    expected = torch.zeros(WIDTH, dtype=torch.float64)
    expected[:count] = 1
    torch.testing.assert_close(singular_values(polar), expected, atol=1e-5, rtol=0)
    left, right = rotations(0)
    torch.testing.assert_close(polar, left[:, :count] @ right[:, :count].mT, atol=2e-5, rtol=0)
    # Nothing is injected: what is orthogonal to the state's rows goes to zero.
    assert (polar @ right[:, count:]).abs().max() < 1e-5


@pytest.mark.parametrize("num_tokens", [1, 2, RANK - 1, RANK, RANK + 2])
def test_a_context_shorter_than_the_rank_gives_one_direction_a_token(num_tokens: int) -> None:
    values, keys = random_states(2, num_tokens, WIDTH)
    polar = normalize(values.mT @ keys, "svd", RANK)
    count = min(num_tokens, RANK)
    expected = (torch.arange(WIDTH) < count).double()
    torch.testing.assert_close(singular_values(polar), expected, atol=1e-5, rtol=0)


def test_repeated_singular_values_share_one_projector() -> None:
    left, right = rotations(3)
    state = with_spectrum([4.0] * 3 + [1.0] * (WIDTH - 3), seed=3).float()
    torch.testing.assert_close(normalize(state, "svd", 3).double(), left[:, :3] @ right[:, :3].mT, atol=1e-5, rtol=0)
    torch.testing.assert_close(normalize(state, "svd", WIDTH).double(), left @ right.mT, atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [1e-5, 0.3, 1e5])
@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_a_state_does_not_matter(method: str, factor: float) -> None:
    state = random_states(WIDTH, WIDTH)
    torch.testing.assert_close(
        normalize(factor * state, method, RANK), normalize(state, method, RANK), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("method", METHODS)
def test_rotating_a_state_rotates_its_norm(method: str) -> None:
    """norm(Q S^T R) = Q norm(S)^T R: a mixed-up side or transpose shows."""
    first, second = rotations(5)
    state = random_states(WIDTH, WIDTH).double()
    expected = first @ normalize(state, method, RANK).double().mT @ second
    torch.testing.assert_close(normalize(first @ state.mT @ second, method, RANK).double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_state_gives_zeros_and_no_gradient(method: str) -> None:
    states = random_states(3, WIDTH, WIDTH)
    states[1] = 0
    states.requires_grad_()
    normalized = normalize(states, method, RANK)
    assert torch.equal(normalized[1], torch.zeros(WIDTH, WIDTH))
    assert normalized[0].norm() > 0.9 and normalized[2].norm() > 0.9
    normalized.square().sum().backward()
    assert states.grad is not None and torch.isfinite(states.grad).all()
    left, right = factorize(torch.zeros(WIDTH, WIDTH), method, RANK)
    assert not left.any() and (right is None or not right.any())


@pytest.mark.parametrize("method", METHODS)
def test_a_state_that_is_not_finite_gives_nan_and_spares_the_others(method: str) -> None:
    states = random_states(3, WIDTH, WIDTH)
    expected = normalize(states, method, RANK)
    states[1, 2, 5] = float("inf")
    states[1, 0, 0] = float("nan")
    normalized = normalize(states, method, RANK)
    assert normalized[1].isnan().all()
    torch.testing.assert_close(normalized[[0, 2]], expected[[0, 2]])


# ---------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("values", GRADIENT_SPECTRA.values(), ids=GRADIENT_SPECTRA)
def test_svd_backward_without_a_cut(values: list[float]) -> None:
    assert gradcheck(truncated(len(values)), with_spectrum(values).requires_grad_())


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_svd_backward_with_a_cut(rank: int) -> None:
    assert gradcheck(truncated(rank), with_spectrum(GRADIENT_SPECTRA["distinct"]).requires_grad_())


@pytest.mark.parametrize("values", [[3.0, 3.0, 3.0, 1.0, 1.0], [5.0, 2.0, 2.0, 0.0, 0.0], [2.0, 2.0, 2.0, 0.7, 0.1]])
def test_svd_backward_with_repeated_values_on_both_sides_of_the_cut(values: list[float]) -> None:
    assert gradcheck(truncated(3), with_spectrum(values).requires_grad_())


@pytest.mark.parametrize(("num_tokens", "rank"), [(1, 5), (2, 5), (3, 4), (3, 2)])
def test_svd_backward_of_a_context_shorter_than_the_state(num_tokens: int, rank: int) -> None:
    """A state of few tokens keeps its rank whatever the generator's weights do, so that is where the slope counts."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, num_tokens, 5, generator=generator, dtype=torch.float64).unbind()
    values, keys = (part.clone().requires_grad_() for part in tokens)
    assert gradcheck(lambda values, keys: truncated(rank)(values.mT @ keys), (values, keys))


def test_svd_backward_of_a_batch_through_normalize() -> None:
    """`normalize` works in float32; its gradient is the float64 one to float32's precision, row by row."""
    states = torch.stack([with_spectrum(torch.linspace(3.0, 0.5, WIDTH), seed) for seed in range(3)]).requires_grad_()
    weights = random_states(3, WIDTH, WIDTH).double()
    (exact,) = torch.autograd.grad((truncated(RANK)(states) * weights).sum(), states)
    (single,) = torch.autograd.grad((normalize(states, "svd", RANK) * weights).sum(), states)
    torch.testing.assert_close(single, exact, atol=1e-3, rtol=1e-3)
    for row in range(3):
        (alone,) = torch.autograd.grad((truncated(RANK)(states[row]) * weights[row]).sum(), states)
        torch.testing.assert_close(alone[row], exact[row])


def test_svd_backward_is_finite_where_the_cut_splits_equal_values() -> None:
    state = (2.0 * torch.eye(WIDTH)).requires_grad_()
    normalize(state, "svd", RANK).square().sum().backward()
    assert state.grad is not None and torch.isfinite(state.grad).all()


def test_frobenius_closed_form_and_gradient() -> None:
    state = random_states(2, 5, 5).double().requires_grad_()
    expected = torch.stack([matrix / sum(x * x for x in matrix.flatten().tolist()) ** 0.5 for matrix in state.detach()])
    torch.testing.assert_close(frobenius(state), expected)
    assert gradcheck(frobenius, state)
    # dN = (dM - <N, dM> N) / ||M||
    weights = random_states(2, 5, 5, seed=9).double()
    (gradient,) = torch.autograd.grad((frobenius(state) * weights).sum(), state)
    size = state.detach().flatten(1).norm(dim=1).view(2, 1, 1)
    along = (expected * weights).sum((1, 2), keepdim=True)
    torch.testing.assert_close(gradient, (weights - along * expected) / size)


@pytest.mark.parametrize(
    "values",
    [[3.0, 2.2, 1.5, 0.9, 0.4], [1.0, 1.0, 1.0, 0.2, 0.2], [1.0, 0.3, 1e-2, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]],
)
def test_newton_schulz_backward(values: list[float]) -> None:
    states = torch.stack([with_spectrum(values, seed) for seed in range(2)]).requires_grad_()
    assert gradcheck(newton_schulz, states, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------ newton_schulz


@pytest.mark.parametrize("seed", range(3))
def test_newton_schulz_is_the_polar_factor_down_to_a_thousandth(seed: int) -> None:
    values = torch.logspace(0, -2.9, WIDTH, dtype=torch.float64)
    state = with_spectrum(values, seed)
    assert (values / state.norm()).min() > 1e-3
    exact = numpy_polar(state, WIDTH)
    assert torch.linalg.matrix_norm(newton_schulz(state) - exact, ord=2) < 1.2e-3
    torch.testing.assert_close(normalize(state, "newton_schulz", WIDTH).double(), exact, atol=1.2e-3, rtol=0)


def test_newton_schulz_applies_its_polynomial_to_every_singular_value() -> None:
    values = torch.tensor([1.0, 0.5, 0.5, 1e-1, 1e-2, 1e-3, 3e-4, 1e-4, 1e-6, 0.0, 0.0], dtype=torch.float64)
    left, right = rotations(4)
    mapped = [polynomial(value) for value in (values / values.norm()).tolist()]
    expected = left @ torch.diag(torch.tensor(mapped, dtype=torch.float64)) @ right.mT
    torch.testing.assert_close(newton_schulz(with_spectrum(values, seed=4)), expected, atol=1e-10, rtol=0)
    assert mapped[-1] == 0 and 0 < mapped[-3] < 0.01 < mapped[6] < 0.9  # weak directions are damped, none is raised


def test_newton_schulz_constants_reach_what_they_promise() -> None:
    assert all(abs(polynomial(10 ** (-3 * step / 5003)) - 1) < 1.2e-3 for step in range(5004))
    assert all(0 < polynomial(10 ** (-3 - step / 500)) < 1 for step in range(1, 3001))


# ------------------------------------------------------------------------------------------------- batches and factors


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_a_loop(method: str) -> None:
    states = random_states(2, 3, WIDTH, WIDTH)
    batched = normalize(states, method, RANK)
    assert batched.shape == states.shape
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(batched[i, j], normalize(states[i, j], method, RANK), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_state_gives_the_same_bits(method: str) -> None:
    states = random_states(3, WIDTH, WIDTH)
    first = normalize(states, method, RANK)
    torch.randn(5)  # moves the global random state
    again = normalize(states.clone(), method, RANK)
    assert torch.equal(first.view(torch.int32), again.view(torch.int32))


@pytest.mark.parametrize("num_tokens", [3, 23])
@pytest.mark.parametrize("method", METHODS)
def test_factors_multiply_to_the_norm(method: str, num_tokens: int) -> None:
    values, keys = random_states(2, 5, num_tokens, WIDTH).unbind()
    states = values.mT @ keys
    left, right = factorize(states, method, RANK)
    if method == "svd":
        assert left.shape == (5, WIDTH, RANK)
        assert right is not None and right.shape == (5, RANK, WIDTH)
    product = left if right is None else left @ right
    torch.testing.assert_close(product, normalize(states, method, RANK), atol=1e-5, rtol=0)


def test_half_precision_states_are_normalised_in_float32() -> None:
    state = random_states(WIDTH, WIDTH).bfloat16()
    for method in METHODS:
        normalized = normalize(state, method, RANK)
        assert normalized.dtype == torch.float32
        torch.testing.assert_close(normalized, normalize(state.float(), method, RANK))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown normalisation 'qr'"):
        normalize(torch.eye(3), "qr", 3)


# -------------------------------------------------------------------------------------------------------------- ridge


def key_value_state(keys: Tensor, values: Tensor) -> Tensor:
    """The sum of v k^T above the sum of k k^T, for keys and values one a row."""
    return torch.cat([values.mT @ keys, keys.mT @ keys], dim=-2)


def test_ridge_is_the_regression_of_values_on_keys() -> None:
    """Against NumPy's least squares with the regularisation as extra rows."""
    keys, values = random_states(23, WIDTH), random_states(23, WIDTH, seed=2)
    strength = 0.3
    rows = numpy.concatenate([keys.double().numpy(), numpy.sqrt(strength) * numpy.eye(WIDTH)])
    wanted = numpy.concatenate([values.double().numpy(), numpy.zeros((WIDTH, WIDTH))])
    expected = torch.from_numpy(numpy.linalg.lstsq(rows, wanted, rcond=None)[0].T)
    actual = ridge(key_value_state(keys, values), torch.tensor([strength]))
    torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=1e-4)


def test_ridge_tells_keys_apart_that_are_nearly_the_same() -> None:
    """Four keys with a large common part each give their own value; the polar factor mixes them."""
    keys = 5 * random_states(1, WIDTH) + 0.5 * random_states(4, WIDTH, seed=2)
    values = torch.eye(4, WIDTH)
    state = key_value_state(keys, values)
    exact = keys @ ridge(state, torch.tensor([1e-3])).mT
    assert (exact[:, :4].argmax(-1) == torch.arange(4)).all() and (exact - values).norm() < 0.2 * values.norm()
    mixed = keys @ newton_schulz(state[:WIDTH]).mT
    assert (mixed[:, :4] / mixed[:, :4].sum(-1, keepdim=True)).diagonal().max() < 0.6


def test_what_ridge_reads_of_a_key_does_not_shrink_as_other_keys_come() -> None:
    """Twenty keys orthogonal to the first leave its read as it is."""
    basis = torch.linalg.qr(random_states(WIDTH, WIDTH))[0]
    keys = torch.cat([basis[:1], 3 * random_states(20, WIDTH - 1, seed=4) @ basis[1:]])
    values = random_states(21, WIDTH, seed=2)
    alone = ridge(key_value_state(keys[:1], values[:1]), torch.tensor([5.0])) @ keys[0]
    among = ridge(key_value_state(keys, values), torch.tensor([5.0])) @ keys[0]
    torch.testing.assert_close(among, alone, atol=1e-4, rtol=1e-4)


def test_ridge_has_exact_gradients_and_no_random_part() -> None:
    keys = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    weights = torch.randn(5, 5, generator=torch.Generator().manual_seed(3)).double()

    def loss(strength: Tensor, move: Tensor) -> Tensor:
        return (ridge(key_value_state(keys + move, values), strength).double() * weights).sum()

    strength, move = torch.tensor([0.2], requires_grad=True), torch.zeros(7, 5, requires_grad=True)
    slopes = torch.autograd.grad(loss(strength, move), (strength, move))
    step = 1e-2
    with torch.no_grad():
        slope = (loss(strength + step, move) - loss(strength - step, move)) / (2 * step)
        assert slope.item() == pytest.approx(slopes[0].item(), rel=2e-2)
        direction = torch.randn(7, 5, generator=torch.Generator().manual_seed(4))
        slope = (loss(strength, step * direction) - loss(strength, -step * direction)) / (2 * step)
        assert slope.item() == pytest.approx((slopes[1] * direction).sum().item(), rel=2e-2)
        assert torch.equal(
            ridge(key_value_state(keys, values), strength), ridge(key_value_state(keys, values), strength)
        )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("batch", "size"), [((), 5), ((3,), 64), ((2, 2), 33), ((4,), 512)])
def test_the_inverse_is_one_whatever_the_batch_and_threads(threads: int, batch: tuple[int, ...], size: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        keys = torch.randn(*batch, 2 * size, size, generator=torch.Generator().manual_seed(size))
        matrix = keys.mT @ keys / size + 0.1 * torch.eye(size)
        product = symmetric_inverse(matrix) @ matrix
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(product, torch.eye(size).expand_as(matrix), rtol=0, atol=1e-3)


def test_the_inverse_of_what_is_not_positive_definite_is_exact_too() -> None:
    matrix = torch.stack([torch.diag(torch.tensor([2.0, -0.5, 1.0])), torch.eye(3), torch.full((3, 3), torch.nan)])
    inverse = symmetric_inverse(matrix)
    torch.testing.assert_close(inverse[0], torch.diag(torch.tensor([0.5, -2.0, 1.0])))
    torch.testing.assert_close(inverse[1], torch.eye(3))
    assert bool(inverse[2].isnan().all())


def test_ridge_of_nothing_is_zero_and_of_nan_is_nan() -> None:
    assert not ridge(torch.zeros(2, 10, 5), torch.tensor([0.03])).any()
    broken = ridge(torch.full((1, 10, 5), torch.nan), torch.tensor([0.03]))
    assert torch.isnan(broken).all()
