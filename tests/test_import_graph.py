"""The arrows between the package's parts, and what must not be imported where (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import generative_adapter

PACKAGE = Path(generative_adapter.__file__).parent
HEAVY = {"torch", "transformers", "gguf", "huggingface_hub"}

_CORE = {"errors", "config", "config_mapping", "generator", "base_model"}
# Part -> the parts it may import. A part is a module or a folder right below the package.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "config_mapping": {"errors"},
    "documents": {"errors"},
    "data": {"errors", "config"},
    "generator": {"errors", "config"},
    "base_model": {"errors", "config", "generator"},
    "checkpoint": _CORE,
    "contextualizer": _CORE | {"checkpoint"},
    "export": _CORE | {"checkpoint", "contextualizer"},
    "methods": _CORE | {"checkpoint", "contextualizer", "data"},
    "training": _CORE | {"checkpoint", "contextualizer", "data"},
}
_BELOW_EVALUATION = set(ALLOWED)
ALLOWED["evaluation"] = _BELOW_EVALUATION
ALLOWED["server"] = _BELOW_EVALUATION
ALLOWED["cli"] = _BELOW_EVALUATION | {"evaluation", "server"}

# Part -> distributions it never imports, not even inside a function.
FORBIDDEN: dict[str, set[str]] = {
    "errors": HEAVY | {"numpy", "safetensors"},
    "config": HEAVY,
    "config_mapping": HEAVY,
    "documents": HEAVY,
    "data": HEAVY,
    "generator": HEAVY - {"torch"},
}
# Part -> distributions it imports only inside functions, so that importing the part is fast.
LAZY: dict[str, set[str]] = {
    "__init__": HEAVY,
    "cli": HEAVY | {"generative_adapter.contextualizer", "generative_adapter.generator", "generative_adapter.training"},
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, at_import_time: bool = False) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports."""
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), at_import_time):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute in this project"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _nodes(tree: ast.AST, at_import_time: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        runs_later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        only_for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if at_import_time and (runs_later or only_for_types):
            continue
        yield node
        yield from _nodes(node, at_import_time)


def is_below(name: str, parents: set[str]) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_run_one_way(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return  # the public names come from everywhere, lazily
    assert part in ALLOWED, f"{part} is new: say here what it may import, and draw it in docs/architecture.md"
    for line, name in imports(path):
        root, *rest = name.split(".")
        if root != "generative_adapter" or not rest:
            continue
        assert rest[0] == part or rest[0] in ALLOWED[part], f"{path}:{line}: {part} must not import {rest[0]}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_imports_stay_where_they_belong(path: Path) -> None:
    part = part_of(path)
    for line, name in imports(path):
        assert not is_below(name, FORBIDDEN.get(part, set())), f"{path}:{line}: {part} must not import {name}"
    for line, name in imports(path, at_import_time=True):
        assert not is_below(name, LAZY.get(part, set())), f"{path}:{line}: import {name} inside a function"


def test_the_checker_sees_nested_and_typing_imports(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a.b\ndef f():\n    from c import d\n"
        "class G:\n    import e\n"
    )
    assert {name for _, name in imports(path)} == {"typing.TYPE_CHECKING", "a.b", "c.d", "e"}
    assert {name for _, name in imports(path, at_import_time=True)} == {"typing.TYPE_CHECKING", "e"}


@pytest.mark.parametrize(
    "module",
    ["generative_adapter", "generative_adapter.cli.main", "generative_adapter.documents", "generative_adapter.data"],
)
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; sys.exit(', '.join(set({sorted(HEAVY)}) & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
