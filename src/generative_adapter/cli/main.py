"""`genadapter`: the commands put together, and how errors are told.

Any error this package raises on purpose, and any bad input, ends with exit status 2 and one line on standard error.
Nothing here imports torch, so that `genadapter --help` is fast; commands load models when they run.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from generative_adapter.cli import (
    ask,
    bench,
    chat,
    contextualize,
    demo,
    evaluate,
    export,
    forget,
    info,
    prepare,
    train,
    trim_adapters,
)
from generative_adapter.cli.console import configure_logging, print_error
from generative_adapter.errors import GenerativeAdapterError


class OneLineErrors(TyperGroup):
    """A group of commands that tells errors in one line, without a usage text or a traceback."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Runs the command; in standalone mode it ends the process with the exit status."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        try:
            status = super().main(*args, standalone_mode=False, **extra)
        except GenerativeAdapterError as error:
            status = print_error(error)
        except OSError as error:
            status = print_error(f"{error.filename or 'the operating system'}: {error.strerror or error}")
        except typer.Abort:
            status = 130
        except typer.TyperException as error:
            status = print_error(error.format_message())
        raise SystemExit(status if isinstance(status, int) else 0)


app = typer.Typer(
    name="genadapter",
    cls=OneLineErrors,
    help="Turns a text into an adapter of a language model, and answers from the adapter alone.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"genadapter {version('generative-adapter')}")
        raise typer.Exit


@app.callback()
def genadapter(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens to standard error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Turns a text into an adapter of a language model, and answers from the adapter alone."""
    configure_logging(verbose)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("ask")(ask.ask)
app.command("contextualize")(contextualize.contextualize)
app.command("forget")(forget.forget)
app.command("chat")(chat.chat)
app.command("export")(export.export)
app.command("trim-adapters")(trim_adapters.trim_adapters)
app.command("info")(info.info)
app.command("train")(train.train)
app.command("prepare")(prepare.prepare)
app.add_typer(evaluate.app, name="eval")
app.command("demo")(demo.demo)
app.add_typer(bench.app, name="bench")
