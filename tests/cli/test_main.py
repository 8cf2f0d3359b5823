"""The command as a whole: help, version, and how errors are told."""

from __future__ import annotations

import logging
from importlib.metadata import version

import pytest

from generative_adapter.cli import loading
from generative_adapter.errors import BaseModelError

COMMANDS = ["ask", "contextualize", "forget", "chat", "export", "trim-adapters", "info", "train", "demo"]


def test_help_lists_every_command(run):
    for arguments in ([], ["--help"], ["-h"]):
        result = run(*arguments)
        assert result.exit_code == 0
        assert all(f" {command} " in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_and_json_where_it_prints_a_result(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_version(run):
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"genadapter {version('generative-adapter')}\n")


def test_usage_errors_are_one_line(fails):
    assert "no-such" in fails("no-such")
    assert "--colour" in fails("ask", "--colour", "red", "Who?")
    assert "QUESTION" in fails("ask")
    assert "--max-new-tokens" in fails("ask", "-c", "a.txt", "--max-new-tokens", "0", "Who?")
    assert "guess" in fails("ask", "-c", "a.txt", "--method", "guess", "Who?")


def test_errors_of_the_package_are_one_line_even_when_their_message_is_not(fails, monkeypatch, two_documents):
    def load_model(*arguments):
        raise BaseModelError("no base model\n  tried: here\n  tried: there")

    monkeypatch.setattr(loading, "load_model", load_model)
    assert fails("ask", "-c", two_documents[0], "Who?") == "no base model tried: here tried: there"


def test_errors_of_the_operating_system_are_one_line(fails, monkeypatch, two_documents):
    def load_model(*arguments):
        raise PermissionError(13, "Permission denied", "weights.gguf")

    monkeypatch.setattr(loading, "load_model", load_model)
    assert fails("ask", "-c", two_documents[0], "Who?") == "weights.gguf: Permission denied"


def test_bugs_are_not_hidden(run, monkeypatch, two_documents):
    def load_model(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(loading, "load_model", load_model)
    assert isinstance(run("ask", "-c", two_documents[0], "Who?").exception, ZeroDivisionError)


def test_interrupting_ends_quietly(run, monkeypatch, two_documents):
    def load_model(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "load_model", load_model)
    result = run("ask", "-c", two_documents[0], "Who?")
    assert (result.exit_code, result.output) == (130, "")


def test_verbose_logs_to_standard_error(run, monkeypatch, model, two_documents):
    def load_model(*arguments):
        logging.getLogger("generative_adapter.somewhere").info("loading takes a while")
        return model

    monkeypatch.setattr(loading, "load_model", load_model)
    quiet, verbose = (run(*flags, "ask", "-c", two_documents[0], "Who?") for flags in ([], ["--verbose"]))
    assert quiet.stdout == verbose.stdout
    assert quiet.stderr == ""
    assert "loading takes a while" in verbose.stderr
