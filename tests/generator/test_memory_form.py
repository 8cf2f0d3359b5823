"""The forms in which states are stored: exactness, errors within closed forms, sizes, and forgetting from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from generative_adapter.config import MEMORY_DTYPES
from generative_adapter.errors import DataError
from generative_adapter.generator.memory import ContextMemory, DocumentEntry, text_digest
from generative_adapter.generator.memory_form import (
    mirrored,
    pack_state,
    packed_layout,
    unpack_state,
    without_negative_keys,
)

VALUES, KEYS = 17, 13  # d_v and d_r
ROUNDED = ("bfloat16", "int8")
BFLOAT16_ERROR = 2.0**-8  # of a number with eight significant bits, rounded to nearest
FLOAT32_ERROR = 2.0**-24


def ridge_state(seed: int = 0, tokens: int = 101, strong: float = 30.0, values: int = VALUES) -> Tensor:
    """S = sum v_i k_i^T above C = sum k_i k_i^T; the keys share a direction, as keys of a model do."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(tokens, KEYS, generator=generator, dtype=torch.float64)
    common = torch.randn(KEYS, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    keys = keys * torch.logspace(0, -1, KEYS, dtype=torch.float64) + strong * common / common.norm()
    rows = torch.randn(tokens, values, generator=generator, dtype=torch.float64)
    return mirrored(torch.cat([rows.mT @ keys, keys.mT @ keys]))


def ridge_map(state: Tensor, strength: float = 1.0) -> Tensor:
    return state[:-KEYS] @ torch.linalg.inv(state[-KEYS:] + strength * torch.eye(KEYS, dtype=torch.float64))


def memory(states: dict[str, Tensor], *texts: str) -> ContextMemory:
    documents = tuple(DocumentEntry(text, text_digest(text), 5, 1) for text in texts)
    return ContextMemory(states, "generator-1", "base-1", "base/name", documents)


def stored(state: Tensor, dtype: str) -> Tensor:
    return unpack_state(pack_state(state, dtype), (state.shape[0], state.shape[1]), dtype)


def relative(error: Tensor, of: Tensor) -> float:
    return (error.norm() / of.norm()).item()


# -------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("values", [1, KEYS, VALUES])
def test_float64_keeps_every_bit(values: int) -> None:
    state = ridge_state(values=values)
    assert torch.equal(stored(state, "float64"), state)


def test_the_triangle_is_the_upper_one_row_by_row() -> None:
    state = torch.tensor([[9.0, 8.0, 7.0], [1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]], dtype=torch.float64)
    packed = pack_state(state, "float64")
    assert packed["values"].tolist() == [[9.0, 8.0, 7.0]]
    assert packed["keys"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_adding_and_forgetting_over_a_file_leaves_nothing(tmp_path: Path) -> None:
    """Also where sums of k_i k_i^T differ from their transposes in a last bit of float32."""
    asymmetric = 1e-7 * torch.randn(VALUES + KEYS, KEYS, dtype=torch.float64)
    short, long = memory({"t": ridge_state(1, 7)}, "short"), memory({"t": ridge_state(2, 4001) + asymmetric}, "long")
    (short + long).save(tmp_path / "both")
    left = ContextMemory.load(tmp_path / "both") - long
    assert [document.name for document in left.documents] == ["short"]
    largest = long.states["t"].abs().max().item()
    torch.testing.assert_close(left.states["t"], short.states["t"], rtol=0, atol=4 * torch.finfo().eps * largest * 1e-9)
    assert torch.equal(left.states["t"][-KEYS:], left.states["t"][-KEYS:].mT)


# ------------------------------------------------------------------------------------------------------------ rounded


def slow_round_trip(packed: dict[str, Tensor]) -> tuple[list[list[float]], list[list[float]]]:
    """S L^-T and L as the file's numbers say, read entry by entry."""
    values = [[entry.item() for entry in row] for row in packed["values"].double()]
    if "values_scale" in packed:
        values = [[x * packed["values_scale"][i].item() for x in row] for i, row in enumerate(values)]
    factor = [[0.0] * KEYS for _ in range(KEYS)]
    below = iter(packed["factor"].double().tolist())
    for i in range(KEYS):
        scale = packed["factor_scale"][i].item() if "factor_scale" in packed else 1.0
        for j in range(i):
            factor[i][j] = next(below) * scale
        factor[i][i] = packed["factor_diagonal"][i].item()
    return values, factor


@pytest.mark.parametrize("dtype", ROUNDED)
def test_a_rounded_state_is_what_its_file_says(dtype: str) -> None:
    state = ridge_state()
    packed = pack_state(state, dtype)
    values, factor = slow_round_trip(packed)
    read = unpack_state(packed, (VALUES + KEYS, KEYS), dtype)
    for i in range(VALUES):
        for j in range(KEYS):
            expected = sum(values[i][k] * factor[j][k] for k in range(KEYS))
            assert read[i, j].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    for i in range(KEYS):
        for j in range(KEYS):
            expected = sum(factor[i][k] * factor[j][k] for k in range(KEYS)) - (i == j) * packed["shift"].item()
            assert read[VALUES + i, j].item() == pytest.approx(expected, rel=1e-12, abs=1e-9)
    assert torch.equal(read[VALUES:], read[VALUES:].mT)


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("seed", range(3))
def test_rounding_errors_stay_within_their_closed_form(dtype: str, seed: int) -> None:
    state = ridge_state(seed)
    packed = pack_state(state, dtype)
    error = (unpack_state(packed, (VALUES + KEYS, KEYS), dtype) - state).abs()

    shift = packed["shift"].item()
    assert shift == pytest.approx(1e-3 * state[VALUES:].diagonal().mean().item())
    exact = torch.linalg.cholesky(state[VALUES:] + shift * torch.eye(KEYS, dtype=torch.float64))
    below = exact.tril(-1).abs()
    half_step = below * BFLOAT16_ERROR if dtype == "bfloat16" else (below.amax(1, keepdim=True) / 254).expand_as(below)
    bound = half_step.tril(-1) + torch.diag(exact.diagonal() * FLOAT32_ERROR)  # on |L~ - L|
    bound = bound * (1 + 1e-6) + 1e-12  # scales are float32
    keys_bound = bound @ exact.abs().mT + exact.abs() @ bound.mT + bound @ bound.mT
    assert (error[VALUES:] <= keys_bound).all()
    assert error[VALUES:].max() > 0.02 * keys_bound.max()  # the form does round, and the bound says how much

    read_values, read_factor = (torch.tensor(part, dtype=torch.float64) for part in slow_round_trip(packed))
    largest = read_values.abs().amax(1, keepdim=True)
    half_step = read_values.abs() * BFLOAT16_ERROR if dtype == "bfloat16" else (largest / 254).expand_as(read_values)
    values_bound = half_step @ read_factor.abs().mT * (1 + 2 * BFLOAT16_ERROR)  # of the numbers after rounding
    assert (error[:VALUES] <= values_bound).all()
    assert error[:VALUES].max() > 0.02 * values_bound.max()


def test_square_states_are_rounded_as_they_are() -> None:
    state = torch.randn(KEYS, KEYS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    state[3] *= 1e6  # a row of its own scale
    assert set(pack_state(state, "bfloat16")) == {"values"}
    assert torch.equal(stored(state, "bfloat16"), state.bfloat16().double())
    error = (stored(state, "int8") - state).abs()
    bound = state.abs().amax(1, keepdim=True) / 254 * (1 + 1e-6)
    assert (error <= bound).all() and (error.amax(1) > 0.5 * bound[:, 0]).all()


@pytest.mark.parametrize(("dtype", "at_most"), [("bfloat16", 0.06), ("int8", 0.15)])
def test_strong_directions_do_not_drown_the_weak_ones(dtype: str, at_most: float) -> None:
    """What a memory of strong common keys is read as: rounding S and C themselves would lose it."""
    state = ridge_state(strong=20.0)
    exact = ridge_map(state, 10.0)
    assert torch.linalg.eigvalsh(state[VALUES:])[-1] > 3000 * 10.0
    assert relative(ridge_map(stored(state, dtype), 10.0) - exact, exact) < at_most
    plain = ridge_map(state.bfloat16().double(), 10.0)
    assert relative(plain - exact, exact) > 0.5


@pytest.mark.parametrize("dtype", MEMORY_DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_keys_without_full_rank_can_be_stored(dtype: str, tokens: int) -> None:
    state = ridge_state(tokens=tokens, strong=1.0)
    read = stored(state, dtype)
    assert torch.allclose(read, state, rtol=0, atol=0.03 * state.abs().max().item())
    assert tokens or not read.any()


@pytest.mark.parametrize("dtype", ROUNDED)
def test_a_state_that_a_form_cannot_hold_is_refused(dtype: str, tmp_path: Path) -> None:
    for row in (0, -1):
        state = ridge_state()
        state[row, 0] = float("nan")
        with pytest.raises(DataError, match=f"{dtype} can't hold.*store it as float64"):
            pack_state(state, dtype)
    with pytest.raises(DataError, match="can't hold"):
        memory({"t": torch.full((3, 3), 1e300, dtype=torch.float64)}).save(tmp_path / "memory", dtype)
    assert not (tmp_path / "memory").exists()


# --------------------------------------------------------------------------------------------------------- forgetting


@pytest.mark.parametrize("dtype", ROUNDED)
def test_forgetting_from_a_rounded_memory_leaves_at_most_its_rounding_error(dtype: str, tmp_path: Path) -> None:
    short, long = memory({"t": ridge_state(1, 7)}, "short"), memory({"t": ridge_state(2, 401)}, "long")
    (short + long).save(tmp_path / "both", dtype)
    both = ContextMemory.load(tmp_path / "both")
    raw = both.states["t"] - long.states["t"]
    left = (both - long).states["t"]
    assert torch.linalg.eigvalsh(raw[VALUES:])[0] < -0.01  # else the next lines would hold of a plain difference
    assert torch.linalg.eigvalsh(left[VALUES:])[0] > -1e-9
    rounding = both.states["t"] - (short + long).states["t"]
    assert (left - short.states["t"])[VALUES:].norm() < (1 - 1e-3) * rounding[VALUES:].norm()
    assert torch.equal(left[:VALUES], raw[:VALUES])
    again = memory({"t": left}, "short") + long
    assert (again.states["t"] - (short + long).states["t"]).norm() <= rounding.norm() * (1 + 1e-9)
    assert not (both - long - short).states["t"].any()


def test_negative_eigenvalues_are_set_to_zero_and_others_kept() -> None:
    basis = torch.linalg.qr(torch.randn(KEYS, KEYS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    eigenvalues = torch.linspace(-2.0, 10.0, KEYS, dtype=torch.float64)
    values = torch.ones(VALUES, KEYS, dtype=torch.float64)
    fixed = without_negative_keys(torch.cat([values, (basis * eigenvalues) @ basis.mT]))
    torch.testing.assert_close(fixed[VALUES:], (basis * eigenvalues.clamp_min(0)) @ basis.mT)
    assert torch.equal(fixed[:VALUES], values)
    barely = eigenvalues.clamp_min(0).index_fill(0, torch.tensor(0), -1e-6)  # what float32 sums leave
    state = mirrored(torch.cat([values, (basis * barely) @ basis.mT]))
    assert torch.equal(without_negative_keys(state), state)
    square = -torch.eye(KEYS)
    assert without_negative_keys(square) is square


# -------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("dtype", "ridge_bytes", "square_bytes"),
    [
        ("float64", 8 * (VALUES * KEYS + KEYS * (KEYS + 1) // 2), 8 * KEYS * KEYS),
        ("bfloat16", 2 * (VALUES * KEYS + KEYS * (KEYS - 1) // 2) + 4 * KEYS + 8, 2 * KEYS * KEYS),
        ("int8", VALUES * KEYS + 4 * VALUES + KEYS * (KEYS - 1) // 2 + 4 * KEYS + 4 * KEYS + 8, KEYS * KEYS + 4 * KEYS),
    ],
)
def test_a_file_has_the_size_of_its_form(tmp_path: Path, dtype: str, ridge_bytes: int, square_bytes: int) -> None:
    path = tmp_path / "memory.safetensors"
    square = torch.randn(KEYS, KEYS)
    memory({"a": ridge_state(0), "b": ridge_state(1), "c": square}, "text").save(path, dtype)
    content = path.read_bytes()
    assert len(content) == 8 + int.from_bytes(content[:8], "little") + 2 * ridge_bytes + square_bytes


@pytest.mark.parametrize("dtype", MEMORY_DTYPES)
@pytest.mark.parametrize("shape", [(30, 13), (13, 13), (2, 1), (1, 1), (3, 7)])
def test_the_layout_is_what_is_packed(dtype: str, shape: tuple[int, int]) -> None:
    packed = pack_state(torch.ones(shape), dtype)
    assert packed_layout(shape, dtype) == {name: (part.dtype, tuple(part.shape)) for name, part in packed.items()}
    assert unpack_state(packed, shape, dtype).shape == shape


@pytest.mark.parametrize("dtype", MEMORY_DTYPES)
def test_a_file_of_any_form_comes_back_in_order_and_in_float64(tmp_path: Path, dtype: str) -> None:
    written = memory({"z": ridge_state(0), "a": ridge_state(1), "m.values": torch.ones(3, 3)}, "text")
    written.save(tmp_path / "memory", dtype)
    read = ContextMemory.load(tmp_path / "memory", "generator-1")
    assert list(read.states) == ["z", "a", "m.values"]
    for name, state in written.states.items():
        assert read.states[name].dtype == torch.float64
        assert torch.equal(read.states[name], stored(state, dtype))
