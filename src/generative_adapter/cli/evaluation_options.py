"""The options that the commands of `genadapter eval` share, and how their texts are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from generative_adapter.errors import ConfigError

Value = TypeVar("Value", int, float)

DEFAULT_METHODS = "closed-book,full-context,generative-adapter"

MethodsOption = Annotated[
    str, typer.Option("--methods", metavar="A,B,...", help="Methods to run; `genadapter eval methods` lists them.")
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of results; a run that was killed goes on there.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Decides every draw.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Questions in all, spread evenly (default: all).")
]
MaxContextsOption = Annotated[
    int | None, typer.Option("--max-contexts", min=1, help="Contexts to take at most (default: all).")
]
TrainDataOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--train-data",
        metavar="FILE",
        help="Training data: prompting chooses its best wording on it, few-shot ones included, and fine-tuning trains "
        "on its questions. May be given several times.",
    ),
]
ChoiceLimitOption = Annotated[
    int, typer.Option("--choice-limit", min=1, help="Training questions that a wording is chosen by.")
]
ChoiceContextsOption = Annotated[int, typer.Option("--choice-contexts", min=1, help="Contexts that these are about.")]
NumShotsOption = Annotated[int, typer.Option("--num-shots", min=0, help="Answered examples in few-shot wordings.")]
MaxPairsOption = Annotated[
    int | None, typer.Option("--max-pairs", min=1, help="Training questions for fine-tuning (default: all).")
]
PlainWordingOption = Annotated[
    str | None,
    typer.Option("--fine-tuning-wording", metavar="NAME", help="Wording of fine-tuned models (default: the first)."),
]
LearningRateOption = Annotated[
    list[str] | None,
    typer.Option("--learning-rate", metavar="METHOD=RATE", help="Of fine-tuning; may be given several times."),
]
EpochsOption = Annotated[
    list[str] | None,
    typer.Option("--epochs", metavar="METHOD=NUMBER", help="Most epochs of fine-tuning; may be given several times."),
]
FitBatchOption = Annotated[
    list[str] | None,
    typer.Option("--fit-batch", metavar="METHOD=NUMBER", help="Samples a step of fine-tuning."),
]
LoraRankOption = Annotated[int, typer.Option("--lora-rank", min=1, help="Rank of fine-tuned LoRA.")]
MaxPromptOption = Annotated[
    int | None,
    typer.Option("--max-prompt-tokens", min=1, help="Prompts keep the last tokens that fit (default: the model's)."),
]
BatchRowsOption = Annotated[int, typer.Option("--batch-rows", min=1, help="Queries that run together at most.")]
BatchTokensOption = Annotated[
    int, typer.Option("--batch-tokens", min=1, help="Tokens of their prompts together at most.")
]
TaskWordingOption = Annotated[
    bool, typer.Option("--task-wording", help="Ask a generator in the task's wording, not in the one it learnt.")
]

StoredMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory-dtype",
        metavar="FORM",
        help="Write a generator's memories as float64, bfloat16 or int8 and read them back before they answer "
        "(default: they aren't stored).",
    ),
]


def names(text: str, flag: str) -> tuple[str, ...]:
    """The names in "a,b,c".

    Raises:
        ConfigError: there is none.
    """
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise ConfigError(f"{flag} {text!r}: expected at least one name, several with commas between")
    return found


def numbers(text: str, flag: str, kind: Callable[[str], Value], lowest: float) -> tuple[Value, ...]:
    """The numbers in "1,2,4".

    Args:
        text: from the command line.
        flag: for messages.
        kind: `int` or `float`.
        lowest: smaller ones are refused.

    Raises:
        ConfigError: one is no number, too small, or there is none or one twice.
    """
    found: list[Value] = []
    for part in names(text, flag):
        try:
            value = kind(part.replace("_", ""))
        except ValueError:
            raise ConfigError(f"{flag} {text!r}: {part!r} is not a number; expected numbers like 512,1024") from None
        if value < lowest:
            raise ConfigError(f"{flag} {text!r}: {part} is too small; expected at least {lowest}")
        if value in found:
            raise ConfigError(f"{flag} {text!r}: {part} is given twice")
        found.append(value)
    return tuple(found)


def by_method(texts: Sequence[str] | None, flag: str, kind: Callable[[str], Value]) -> dict[str, Value]:
    """The numbers in ["sft-lora=1e-4", ...] by method.

    Raises:
        ConfigError: one has another form, names a method that there is none of, or isn't positive.
    """
    from generative_adapter.methods.registry import check_names

    found: dict[str, Value] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{flag} {text!r}: expected METHOD=VALUE, such as sft-lora=1e-4")
        check_names([name])
        (found[name],) = numbers(value, f"{flag} {name}=", kind, 0)
        if found[name] <= 0:
            raise ConfigError(f"{flag} {text!r}: expected a positive number")
    return found
