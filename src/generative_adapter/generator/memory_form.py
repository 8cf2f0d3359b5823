"""The forms in which a memory's states are stored: as they are (`float64`), or rounded to bfloat16 or int8.

A state that is a sum over tokens is `[rows, columns]`. Where it has more rows than columns, as those of `ridge` have,
its last `columns` rows are C = sum_i k_i k_i^T: symmetric, without negative eigenvalues, and stored as a triangle. In
the rounded forms that is the Cholesky factor L of C, and S, the rows above, is stored as S L^-T. Reading a memory
multiplies by (C + s I)^-1, so what matters is the error in C's weak directions. Rounding C itself puts an error in
proportion to its largest eigenvalue there, rounding L in proportion to the root of that times the direction's own.
Square states are rounded as they are.

A state that keeps a row for every token is `[tokens, width]`, float32, and is rounded as it is; in int8 with a scale
for every 32 numbers of a row, since its parts (a value, a key) differ in size.

Leaves out: files and their headers (`memory_file.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from generative_adapter.errors import DataError

_SHIFT = 1e-3  # of C's mean eigenvalue, added before factorising: the C of a short text has no full rank
_GROUP = 32  # numbers of a row with one int8 scale
_NEGATIVE = 1e-5  # of C's largest entry; eigenvalues further below zero than float32 sums leave come of rounding


def split_state(state: Tensor) -> tuple[Tensor, Tensor | None]:
    """The rows above the symmetric block, and that block C `[columns, columns]`; None where there is no such block."""
    rows, columns = state.shape
    return (state[:-columns], state[-columns:]) if rows > columns else (state, None)


def mirrored(state: Tensor) -> Tensor:
    """The state with its symmetric block exactly symmetric: the entries above the diagonal count.

    Sums of k_i k_i^T may differ from their transposes in the last bit; this way they are the same after being stored.
    """
    values, keys = split_state(state)
    return state if keys is None else torch.cat([values, _mirrored_square(keys)])


def without_negative_keys(state: Tensor) -> Tensor:
    """The state with the nearest symmetric block that a sum of k_i k_i^T can be, in the Frobenius norm.

    A memory that was rounded, less a document of it, can have negative eigenvalues as large as the strength s of
    `ridge`; then (C + s I)^-1 is far off. Since the true block has none, setting them to zero takes the block nearer to
    it. Blocks whose negative eigenvalues are no more than rounding of float32 sums come back as they are, bit for bit.
    """
    values, keys = split_state(state)
    return state if keys is None else torch.cat([values, _nearest_sum_of_squares(keys)])


def pack_state(state: Tensor, dtype: str) -> dict[str, Tensor]:
    """The tensors that stand for a state in a file.

    Args:
        state: `[rows, columns]`.
        dtype: one of `config.MEMORY_DTYPES`.

    Returns:
        `values`, for `float64` with `keys`, the upper triangle of C row by row; for the others with `factor`, the
        lower triangle of L without its diagonal row by row, `factor_diagonal` (float32) and `shift`, the s0 in
        L L^T = C + s0 I. For `int8` also `values_scale` and `factor_scale`, one float32 factor a row.

    Raises:
        DataError: the state holds numbers that the form can't hold, or that aren't finite.
    """
    values, keys = split_state(state.detach().cpu().double())
    if dtype == "float64":
        return {"values": values} if keys is None else {"values": values, "keys": keys[_upper(len(keys))]}
    packed: dict[str, Tensor] = {}
    if torch.isfinite(state).all():
        if keys is not None:
            packed = _pack_factor(keys, dtype)
            factor = _unpack_factor(packed, len(keys))
            values = torch.linalg.solve_triangular(factor, values.mT, upper=False).mT
        packed |= _round("values", values, dtype)
    if not packed or not all(torch.isfinite(tensor).all() for tensor in packed.values()):
        raise DataError(f"a state holds numbers that {dtype} can't hold, or that aren't finite; store it as float64")
    return packed


def unpack_state(packed: Mapping[str, Tensor], shape: tuple[int, int], dtype: str) -> Tensor:
    """The state that `pack_state` packed, `[rows, columns]`, float64; a symmetric block is exactly symmetric."""
    rows, columns = shape
    values = _unround(packed, "values")
    if rows <= columns:
        return values
    if dtype == "float64":
        keys = values.new_zeros(columns, columns)
        keys[_upper(columns)] = packed["keys"]
        return torch.cat([values, _mirrored_square(keys)])
    factor = _unpack_factor(packed, columns)
    keys = factor @ factor.mT - packed["shift"] * torch.eye(columns, dtype=torch.float64)
    return torch.cat([values @ factor.mT, _nearest_sum_of_squares(_mirrored_square(keys))])


def packed_layout(shape: tuple[int, int], dtype: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Number format and shape of every tensor that `pack_state` makes of a state of this shape."""
    rows, columns = shape
    number = {"float64": torch.float64, "bfloat16": torch.bfloat16, "int8": torch.int8}[dtype]
    height = rows - columns if rows > columns else rows
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"values": (number, (height, columns))}
    if dtype == "int8":
        layout["values_scale"] = (torch.float32, (height,))
    if rows > columns and dtype == "float64":
        layout["keys"] = (number, (columns * (columns + 1) // 2,))
    elif rows > columns:
        layout["factor"] = (number, (columns * (columns - 1) // 2,))
        layout["factor_diagonal"] = (torch.float32, (columns,))
        layout["shift"] = (torch.float64, (1,))
        if dtype == "int8":
            layout["factor_scale"] = (torch.float32, (columns,))
    return layout


def pack_rows(state: Tensor, dtype: str) -> dict[str, Tensor]:
    """The tensors that stand for a state `[tokens, width]` that keeps a row for every token.

    Returns:
        `rows`: for `float64` the float32 numbers as they are, else rounded; for `int8` also `rows_scale`, float32
        `[tokens, width / 32 rounded up]`, a factor for every 32 numbers of a row.

    Raises:
        DataError: the state holds numbers that the form can't hold, or that aren't finite.
    """
    rows = state.detach().cpu().float()
    if dtype == "float64":
        return {"rows": rows}
    packed = {}
    if torch.isfinite(rows).all():
        packed = _round("rows", _grouped(rows) if dtype == "int8" else rows, dtype)
    if "rows_scale" in packed:
        groups = -(-rows.shape[1] // _GROUP)
        packed["rows"] = packed["rows"].view(len(rows), groups * _GROUP)[:, : rows.shape[1]].contiguous()
        packed["rows_scale"] = packed["rows_scale"].view(len(rows), groups)
    if not packed or not all(torch.isfinite(tensor).all() for tensor in packed.values()):
        raise DataError(f"a state holds numbers that {dtype} can't hold, or that aren't finite; store it as float64")
    return packed


def unpack_rows(packed: Mapping[str, Tensor]) -> Tensor:
    """The state that `pack_rows` packed, `[tokens, width]`, float32."""
    rows, scale = packed["rows"], packed.get("rows_scale")
    if scale is None:
        return rows.float()
    found = _unround({"rows": _grouped(rows), "rows_scale": scale.flatten()}, "rows", torch.float32)
    return found.view(len(rows), scale.shape[1] * _GROUP)[:, : rows.shape[1]].contiguous()


def rows_layout(shape: tuple[int, int], dtype: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Number format and shape of every tensor that `pack_rows` makes of a state of this shape."""
    number = {"float64": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[dtype]
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"rows": (number, shape)}
    if dtype == "int8":
        layout["rows_scale"] = (torch.float32, (shape[0], -(-shape[1] // _GROUP)))
    return layout


def _grouped(rows: Tensor) -> Tensor:
    """Every 32 numbers of a row as a row of their own, the last ones of each filled up with zeros."""
    groups = -(-rows.shape[1] // _GROUP)
    return F.pad(rows, (0, groups * _GROUP - rows.shape[1])).view(len(rows) * groups, _GROUP)


def _upper(width: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(width, width).unbind()
    return rows, columns


def _strictly_lower(width: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tril_indices(width, width, offset=-1).unbind()
    return rows, columns


def _mirrored_square(square: Tensor) -> Tensor:
    below = torch.ones_like(square, dtype=torch.bool).tril(-1)
    return torch.where(below, square.mT, square)


def _nearest_sum_of_squares(keys: Tensor) -> Tensor:
    allowed = _NEGATIVE * keys.diagonal().abs().max() * torch.eye(len(keys), dtype=keys.dtype, device=keys.device)
    if not torch.isfinite(keys).all() or not torch.linalg.cholesky_ex(keys + allowed).info:
        return keys
    values, vectors = torch.linalg.eigh(keys)
    return _mirrored_square((vectors * values.clamp_min(0)) @ vectors.mT)


def _pack_factor(keys: Tensor, dtype: str) -> dict[str, Tensor]:
    """L of L L^T = C + s0 I, its diagonal in float32 and the rest rounded."""
    keys = _nearest_sum_of_squares(_mirrored_square(keys))
    shift = (_SHIFT * keys.diagonal().mean()).clamp_min(torch.finfo(torch.float32).tiny)
    factor = torch.linalg.cholesky(keys + shift * torch.eye(len(keys), dtype=keys.dtype))
    packed = _round("factor", factor.tril(-1), dtype)
    packed["factor"] = packed["factor"][_strictly_lower(len(keys))]
    return packed | {"factor_diagonal": factor.diagonal().float(), "shift": shift.reshape(1)}


def _unpack_factor(packed: Mapping[str, Tensor], width: int) -> Tensor:
    full = packed["factor"].new_zeros(width, width)
    full[_strictly_lower(width)] = packed["factor"]
    below = _unround({**packed, "factor": full}, "factor")
    return below + torch.diag(packed["factor_diagonal"].double())


def _round(name: str, matrix: Tensor, dtype: str) -> dict[str, Tensor]:
    """A matrix in bfloat16, or in int8 with a scale a row that takes the row's largest entry to 127."""
    if dtype == "bfloat16":
        return {name: matrix.bfloat16()}
    scale = (matrix.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny).float()
    steps = (matrix / scale.to(matrix.dtype).unsqueeze(1)).round().clamp(-127, 127)
    return {name: steps.to(torch.int8), f"{name}_scale": scale}


def _unround(packed: Mapping[str, Tensor], name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    matrix = packed[name].to(dtype)
    scale = packed.get(f"{name}_scale")
    return matrix if scale is None else matrix * scale.to(dtype).unsqueeze(1)
