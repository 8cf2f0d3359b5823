"""Which part of a request becomes the adapter, and which stays the prompt.

Leaves out: reading either of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from generative_adapter.errors import ConfigError

SEPARATOR = "<end-of-context>"


@dataclass(frozen=True)
class ContextSplit:
    """A rule that takes contexts out of texts.

    By a separator: all that stands before the last one is the context; earlier ones in it become empty lines, so that
    few-shot demonstrations with a context each go into the adapter together. By a pattern: every match is taken out
    of the text, and what the group named `context` (or the whole match, where there is no such group) holds is the
    context, several of them with an empty line between.

    Attributes:
        separator: a text that is no part of context or prompt; empty where there is a pattern.
        pattern: a regular expression of Python's, used instead of the separator.

    Raises:
        ConfigError: when both or neither are given, or the pattern is no regular expression.
    """

    separator: str = SEPARATOR
    pattern: str | None = None

    def __post_init__(self) -> None:
        if bool(self.separator) == bool(self.pattern):
            raise ConfigError(
                f"a context is found by a separator or by a pattern, got separator {self.separator!r} and pattern "
                f"{self.pattern!r}; give one of them"
            )
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ConfigError(f"the context pattern {self.pattern!r} is no regular expression: {error}") from error

    def __call__(self, text: str) -> tuple[str, str]:
        """(context, prompt) of a text; the context is empty where the rule finds none, the prompt as it was then.

        White space around the context is dropped, and white space that the prompt would start with.
        """
        if self.pattern is None:
            before, found, prompt = text.rpartition(self.separator)
            context = before.replace(self.separator, "\n\n") if found else ""
        else:
            rule = re.compile(self.pattern)
            group = "context" if "context" in rule.groupindex else 0
            found = [match[group] or "" for match in rule.finditer(text)]
            context = "\n\n".join(part.strip() for part in found)
            prompt = rule.sub("", text) if found else text
        return (context.strip(), prompt.lstrip()) if found else ("", text)
