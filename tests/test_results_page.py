"""What putting one method's numbers anew into the results page keeps: `scripts/results_page.py --rows`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("results_page", ROOT / "scripts" / "results_page.py")
assert SPEC is not None and SPEC.loader is not None
results_page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(results_page)

PAGE = """
### Document QA: F1, %

| method | 512 | 1K |
|---|---:|---:|
| *own document* |  |  |
| ours | 1.0 | 2.0 |
| theirs, with a \\| bar | 3.0 | 4.0 |
| *other document* |  |  |
| ours | 5.0 | 6.0 |
| ours, unrelated question | 7.0 | 8.0 |

Columns: tokens.

| method | more |
|---|---:|
| ours | 9.0 |

### Needle, ours: F1, %

| depth | 256 |
|---|---:|
| 0.0 | 10.0 |

### MetaICL

| task | theirs | ours |
|---|---:|---:|
| boolq | 11.0 | 12.0 |
| codah | 13.0 | 14.0 |
"""


def numbers(*pairs: tuple[str, str]) -> str:
    text = PAGE
    for old, new in pairs:
        assert text.count(f" {old} ") == 1
        text = text.replace(f" {old} ", f" {new} ")
    return text


def test_the_numbers_of_one_method_are_replaced():
    changes = [(f"{n}.0", f"{n}.5") for n in (1, 2, 5, 6, 7, 8, 9, 10, 12, 14)]
    others = [(f"{n}.0", f"{n}.7") for n in (3, 4, 11, 13)]  # they hold for the run that the page's are of
    assert results_page.with_rows(PAGE, numbers(*changes, *others), "ours") == numbers(*changes)


def test_the_shown_page_reads_as_it_is():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    shown = page.split(results_page.BEGIN)[1].split(results_page.END)[0]
    assert len(results_page.tables_of(shown)) > 10
    assert results_page.with_rows(shown, shown, "generative-adapter") == shown


def test_columns_may_stand_in_another_order():
    new = (
        "### Document QA: F1, %\n\n| method | 1K | 512 |\n|---|---|---|\n| *other document* | | |\n| ours | 6.5 | 5.5 |"
    )
    assert results_page.with_rows(PAGE, new, "ours") == numbers(("5.0", "5.5"), ("6.0", "6.5"))


def test_a_method_is_not_taken_for_another_whose_name_begins_alike():
    page = PAGE.replace("### Needle, ours:", "### Needle, ours-cached:") + "\n### Less ours\n\n| a |\n|---|\n| b |\n"
    new = page.replace("10.0", "10.5").replace("| b |", "| c |").replace(" 1.0 ", " 1.5 ")
    assert results_page.with_rows(page, new, "ours") == page.replace(" 1.0 ", " 1.5 ")


@pytest.mark.parametrize(
    ("new", "told"),
    [
        ("### Personalisation\n\n| method | F1 |\n|---|---|\n| ours | 1 |", "no table"),
        ("### Document QA: F1, %\n\n| method | 2K |\n|---|---|\n| *own document* | |\n| ours | 1 |", "no row"),
        ("### Document QA: F1, %\n\n| method | 512 |\n|---|---|\n| *no document* | |\n| ours | 1 |", "no row"),
        ("### MetaICL\n\n| task | ours |\n|---|---|\n| piqa | 1 |", "no row 'piqa'"),
    ],
)
def test_what_the_page_lacks_is_an_error(new, told):
    with pytest.raises(ValueError, match=told):
        results_page.with_rows(PAGE, new, "ours")


def test_the_script_changes_that_method_alone(tmp_path, monkeypatch):
    page, images, report = tmp_path / "results.md", tmp_path / "images", tmp_path / "report"
    page.write_text(f"Text: 1.0\n{results_page.BEGIN}{PAGE}{results_page.END}\nEnd\n", encoding="utf-8")
    for folder, names in (
        (images, ("needle-ours", "needle-theirs")),
        (report, ("needle-ours", "needle-theirs", "msc")),
    ):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.png").write_text(folder.name)
    (report / "tables.md").write_text("# Report\n" + numbers(("1.0", "1.5")), encoding="utf-8")
    written = {"tables.md": report / "tables.md"} | {f"plots/{each.name}": each for each in report.glob("*.png")}
    monkeypatch.setattr(results_page, "write_report", lambda *_: written)
    arguments = ["x", str(tmp_path), "--page", str(page), "--images", str(images), "--rows", "ours"]
    monkeypatch.setattr(sys, "argv", arguments)
    results_page.main()
    after = page.read_text(encoding="utf-8")
    assert after == f"Text: 1.0\n{results_page.BEGIN}{numbers(('1.0', '1.5'))}{results_page.END}\nEnd\n"
    assert {each.name: each.read_text() for each in images.iterdir()} == {
        "needle-ours.png": "report",
        "needle-theirs.png": "images",
    }
    monkeypatch.setattr(sys, "argv", [*arguments[:-1], "nobody"])
    with pytest.raises(SystemExit, match="nothing was measured with 'nobody'"):
        results_page.main()
    assert page.read_text(encoding="utf-8") == after
