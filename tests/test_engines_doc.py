"""The Python in docs/engines.md that needs no other engine runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from generative_adapter.base_model.loading import find_embedded_gguf
from generative_adapter.errors import BaseModelError

DOC = Path(__file__).parents[1] / "docs" / "engines.md"


@pytest.mark.embedded
def test_generate_and_pipeline_answer_from_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        find_embedded_gguf()
    except BaseModelError as error:
        pytest.skip(str(error))
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), flags=re.DOTALL)
    (code,) = [block for block in blocks if "pipeline(" in block]
    exec(compile(code, str(DOC), "exec"), {})
    told = capsys.readouterr().out
    assert "lilac" in told and "green" in told
