from __future__ import annotations

import json

from generative_adapter.generator.memory import ContextMemory


def test_documents_are_read_separately_and_added(run, model, two_documents):
    result = run("ask", "--context", two_documents[0], "--context", two_documents[1], "Where does Ann live?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "memory of first.txt + second.md\n", "")
    assert model.calls[:2] == [("contextualize", ("first.txt", False)), ("contextualize", ("second.md", False))]


def test_several_questions(run, model, two_documents):
    result = run("ask", "-c", two_documents[0], "Who?", "Where?")
    assert result.stdout == "Who?\n  memory of first.txt\nWhere?\n  memory of first.txt\n"


def test_json_of_the_adapter(run, model, two_documents):
    result = run("ask", "-c", two_documents[0], "Where is Ann?", "Who?", "--json", "--max-new-tokens", 7)
    report = json.loads(result.stdout)
    assert list(report) == ["method", "base_model", "generator", "context_tokens", "seconds", "answers"]
    assert report["method"] == "adapter"
    assert report["base_model"] == "fake-base"
    assert report["context_tokens"] == 4
    assert list(report["seconds"]) == ["load", "contextualize", "generate"]
    first = report["answers"][0]
    assert list(first) == ["question", "answer", "prompt_tokens", "generated_tokens", "seconds"]
    assert (first["answer"], first["prompt_tokens"], first["generated_tokens"]) == ("memory of first.txt", 3, 3)
    assert model.calls[1] == ("answer", (["Where is Ann?"], 7))


def test_prompt_joins_the_texts(run, model, two_documents):
    result = run("ask", "-c", two_documents[0], "-c", two_documents[1], "--method", "prompt", "--json", "Who?")
    report = json.loads(result.stdout)
    assert report["answers"][0]["answer"] == "prompt 'Ann lives in Bonn.\\n\\nCarl lives in the town of Delft.'"
    assert (report["context_tokens"], report["answers"][0]["prompt_tokens"]) == (11, 12)


def test_closed_book_needs_no_document(run, model):
    report = json.loads(run("ask", "--method", "closed-book", "Who?", "--json").stdout)
    assert (report["context_tokens"], report["answers"][0]["answer"]) == (0, "nothing")


def test_memory_and_documents_add_up(run, model, two_documents, tmp_path):
    memory = tmp_path / "first.safetensors"
    model.contextualize("Ann lives in Bonn.", name="first.txt").save(memory)
    assert run("ask", "--memory", memory, "Who?").stdout == "memory of first.txt\n"
    both = run("ask", "--memory", memory, "-c", two_documents[1], "Who?")
    assert both.stdout == "memory of first.txt + second.md\n"
    assert len(ContextMemory.load(memory).documents) == 1


def test_standard_input(run, model):
    assert run("ask", "-c", "-", "Who?", input="Ann is here.").stdout == "memory of standard input\n"


def test_model_options_are_handed_on(run, model, two_documents):
    options = ["--generator", "g.safetensors", "--base-model", "b", "--device", "cuda:1", "--dtype", "float32"]
    assert run("ask", "-c", two_documents[0], *options, "Who?").exit_code == 0
    assert model.load_arguments == ("g.safetensors", "b", "cuda:1", "float32")


def test_bad_input(fails, model, two_documents, tmp_path):
    assert "--context FILE or --memory MEMORY" in fails("ask", "Who?")
    assert "--context FILE" in fails("ask", "--method", "prompt", "Who?")
    assert "holds no text" in fails("ask", "--method", "prompt", "--memory", "m", "-c", two_documents[0], "Who?")
    assert "missing.txt: there is no such file" in fails("ask", "-c", tmp_path / "missing.txt", "Who?")
    assert "there is no such memory" in fails("ask", "--memory", tmp_path / "missing", "Who?")
    assert "a question is empty" in fails("ask", "-c", two_documents[0], "  ")
    assert "only once" in fails("ask", "-c", "-", "-c", "-", "Who?")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    assert "broken.safetensors" in fails("ask", "--memory", broken, "Who?")
    assert model.load_arguments == () or model.calls == []
