"""docs/method.md: every place it names exists, and every equation of the paper has one."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "method.md"
REFERENCE = re.compile(r"`((?:src|tests)/[\w./-]+\.py)::([\w.]+)`")
TEXT = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.is_file() else ""
REFERENCES = sorted(set(REFERENCE.findall(TEXT)))


def symbols(path: Path) -> set[str]:
    """Dotted names of all classes, functions and methods of a module."""
    found: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


@pytest.mark.parametrize(("path", "symbol"), REFERENCES, ids=[f"{path}::{symbol}" for path, symbol in REFERENCES])
def test_every_place_exists(path: str, symbol: str) -> None:
    assert (ROOT / path).is_file(), f"docs/method.md names {path}, which does not exist"
    assert symbol in symbols(ROOT / path), f"docs/method.md names {path}::{symbol}, which does not exist"


@pytest.mark.parametrize("equation", range(1, 10))
def test_every_equation_has_a_row_with_its_place(equation: int) -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith(f"| ({equation}) |")]
    assert len(rows) == 1
    assert any(path.startswith("src/") for path, _ in REFERENCE.findall(rows[0]))
    assert "tests/" in rows[0]


def test_every_mention_of_a_file_is_checked() -> None:
    """No place is written in a way that the pattern above would overlook."""
    assert TEXT.count("::") == len(REFERENCE.findall(TEXT)) > 20
    for path in re.findall(r"`((?:src|tests|docs|configs)/[\w./-]+)`", TEXT):
        assert (ROOT / path).exists(), f"docs/method.md names {path}, which does not exist"


def test_the_configuration_names_exist() -> None:
    """Settings that the document names are settings."""
    source = "".join(
        (ROOT / "src/generative_adapter" / name).read_text() for name in ("config.py", "training/recipe.py")
    )
    for name in ("state_dim", "rank", "hidden_norm", "value_shift", "normalization", "completion_weight", "scale"):
        assert name in TEXT and re.search(rf"^    {name}: ", source, re.MULTILINE)


def test_symbols_are_told_apart(tmp_path: Path) -> None:
    """The check above can fail: it tells methods from functions and sees what is missing."""
    module = tmp_path / "module.py"
    module.write_text("class A:\n    def method(self): ...\n\ndef function(): ...\n")
    assert symbols(module) == {"A", "A.method", "function"}
