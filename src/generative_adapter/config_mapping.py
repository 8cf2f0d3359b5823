"""Dataclasses of settings from JSON or YAML, and back.

Leaves out: the settings themselves (`config.py`, `training/recipe.py`).
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from generative_adapter.errors import ConfigError

T = TypeVar("T")


def from_mapping(cls: type[T], values: Any, where: str = "") -> T:
    """The dataclass `cls` made from nested mappings, as JSON or YAML gives them.

    Lists become tuples, whole numbers become floats where a float is asked for. `where` names the place in messages.

    Raises:
        ConfigError: for an unknown or missing key (with the nearest known one) or a value of the wrong type.
    """
    place = where or cls.__name__
    if not isinstance(values, Mapping):
        raise ConfigError(f"{place}: expected a mapping of settings, got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(fields))}"
            raise ConfigError(f"{place}: unknown setting {key!r}{hint}")
        given[key] = _convert(hints[key], value, f"{where}.{key}" if where else str(key))
    for name, field in fields.items():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if missing and name not in given:
            raise ConfigError(f"{place}: the setting {name!r} is missing")
    return cls(**given)


def to_mapping(config: Any) -> dict[str, Any]:
    """The settings of a dataclass as plain JSON values (tuples as lists)."""
    return {key: _plain(value) for key, value in dataclasses.asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _convert(next(option for option in options if option is not type(None)), value, where)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, element, f"{where}[{index}]") for index, element in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):
        try:
            return float(value)  # YAML reads 1e-3 as a string
        except ValueError:
            pass
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is not bool and isinstance(value, bool))):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
