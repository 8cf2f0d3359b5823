"""Low-rank adapters: truncation against NumPy's SVD of the dense update."""

import numpy
import pytest
import torch
from torch import Tensor

from generative_adapter.errors import AdapterError
from generative_adapter.generator.low_rank import LowRankAdapter, LowRankFactors

IN, OUT, RANK = 17, 19, 7


def factors(seed: int, out_features: int = OUT, in_features: int = IN, rank: int = RANK) -> LowRankFactors:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, in_features, generator=generator)
    return LowRankFactors(down, up=torch.randn(out_features, rank, generator=generator))


@pytest.fixture
def adapter() -> LowRankAdapter:
    """Two targets of different shapes; the second one is wider in rank than in output."""
    return LowRankAdapter({"first": factors(1), "second": factors(2, out_features=5, in_features=23)})


def numpy_truncated(delta: Tensor, rank: int) -> tuple[Tensor, float, float]:
    """The best approximation of rank `rank`, and the squared sizes of what is lost and of the whole."""
    left, values, right = numpy.linalg.svd(delta.double().numpy(), full_matrices=False)
    best = torch.from_numpy(left[:, :rank] @ numpy.diag(values[:rank]) @ right[:rank])
    return best, float((values[rank:] ** 2).sum()), float((values**2).sum())


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_truncation_is_the_best_approximation(adapter: LowRankAdapter, rank: int) -> None:
    truncated, error = adapter.truncate(rank)
    lost = total = 0.0
    for name in adapter:
        best, target_lost, target_total = numpy_truncated(adapter[name].delta(), rank)
        torch.testing.assert_close(truncated[name].delta().double(), best, atol=1e-4, rtol=1e-4)
        assert truncated[name].rank == rank
        lost, total = lost + target_lost, total + target_total
    assert error == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    measured = sum((truncated[name].delta() - adapter[name].delta()).square().sum().item() for name in adapter)
    assert error == pytest.approx((measured / total) ** 0.5, rel=1e-3)
    assert truncated.rank == rank
    assert truncated.num_parameters == rank * (IN + OUT + 5 + 23)


@pytest.mark.parametrize("rank", [RANK, 50])
def test_truncation_to_no_less_than_the_rank_loses_nothing(adapter: LowRankAdapter, rank: int) -> None:
    truncated, error = adapter.truncate(rank)
    assert error < 1e-6
    for name in adapter:
        torch.testing.assert_close(truncated[name].delta(), adapter[name].delta(), atol=1e-4, rtol=1e-4)
    assert truncated["second"].rank == 5  # no more than the layer's own width


def test_a_zero_adapter_truncates_to_zero() -> None:
    zero = LowRankFactors(torch.zeros(RANK, IN), torch.zeros(OUT, RANK))
    truncated, error = LowRankAdapter({"zero": zero}).truncate(2)
    assert error == 0.0
    assert torch.equal(truncated["zero"].delta(), torch.zeros(OUT, IN))


@pytest.mark.parametrize("rank", [0, -3])
def test_a_rank_that_is_not_positive_is_refused(adapter: LowRankAdapter, rank: int) -> None:
    with pytest.raises(AdapterError, match=f"must be positive, got {rank}"):
        adapter.truncate(rank)


def test_truncation_keeps_the_number_format(adapter: LowRankAdapter) -> None:
    half, _ = adapter.to(dtype=torch.bfloat16).truncate(3)
    exact, _ = adapter.truncate(3)
    for name in adapter:
        assert half[name].down.dtype == half[name].up.dtype == torch.bfloat16
        difference = half[name].delta().float() - exact[name].delta()
        assert difference.norm() < 0.03 * exact[name].delta().norm()


def test_to_converts_every_factor_and_leaves_the_original(adapter: LowRankAdapter) -> None:
    converted = adapter.to("cpu", torch.float16)
    assert list(converted) == ["first", "second"] and len(converted) == 2
    for name in adapter:
        assert adapter[name].down.dtype == torch.float32
        assert torch.equal(converted[name].down, adapter[name].down.half())
        assert torch.equal(converted[name].up, adapter[name].up.half())
    for name, same in adapter.to(device="cpu").items():
        assert same.up.dtype == torch.float32 and torch.equal(same.up, adapter[name].up)


def test_rank_and_size_of_mixed_ranks() -> None:
    adapter = LowRankAdapter({"a": factors(1, rank=2), "b": factors(2, rank=3)})
    assert adapter.rank == 3
    assert adapter.num_parameters == (2 + 3) * (IN + OUT)
    assert LowRankAdapter({}).rank == 0 and LowRankAdapter({}).num_parameters == 0


def test_delta_is_up_times_down() -> None:
    pair = factors(1)
    expected = sum(torch.outer(pair.up[:, index], pair.down[index]) for index in range(RANK))
    torch.testing.assert_close(pair.delta(), expected)


@pytest.mark.parametrize(
    ("down", "up"),
    [((RANK, IN), (OUT, RANK + 1)), ((RANK, IN), (RANK, OUT)), ((IN,), (OUT, RANK)), ((2, 3, 4), (5, 2))],
)
def test_factors_that_do_not_multiply_are_refused(down: tuple[int, ...], up: tuple[int, ...]) -> None:
    with pytest.raises(AdapterError, match="must be \\[r, d_in\\] and \\[d_out, r\\]"):
        LowRankFactors(torch.zeros(down), torch.zeros(up))
