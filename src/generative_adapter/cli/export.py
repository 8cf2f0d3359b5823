"""`genadapter export`: a memory becomes an adapter that other tools load, and a base model a folder that they read."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from generative_adapter.cli import loading
from generative_adapter.cli.console import count, print_json, print_text
from generative_adapter.cli.options import BaseModelOption, DeviceOption, GeneratorOption, JsonOption
from generative_adapter.documents import read_document
from generative_adapter.errors import ConfigError

if TYPE_CHECKING:
    from generative_adapter.contextualizer import GenerativeAdapter
    from generative_adapter.generator.memory import ContextMemory


class AdapterFormat(str, Enum):
    """What a memory can be exported as."""

    PEFT = "peft"
    GGUF = "gguf"
    MERGED = "merged"


class NumberFormat(str, Enum):
    """The number formats that can be written."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


def export(
    memory: Annotated[
        Path | None,
        typer.Argument(metavar="[MEMORY]", help="Memory to export, written by contextualize.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="Where to write: a folder, of gguf a file."),
    ] = None,
    form: Annotated[
        AdapterFormat,
        typer.Option(
            "--format", help="A PEFT folder, a GGUF file for llama.cpp, or a model with the adapter merged in."
        ),
    ] = AdapterFormat.PEFT,
    context: Annotated[
        list[str] | None,
        typer.Option("--context", "-c", metavar="FILE", help="Document to read too, - is standard input; repeatable."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option("--base", metavar="FOLDER", help="Where to write the base model, for tools that need a folder."),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank", help="Rank; of peft 8, 16, 32, 64, 128, 256, 320 or 512 (default: the least that loses nothing)."
        ),
    ] = None,
    number_format: Annotated[NumberFormat, typer.Option("--dtype", help="Numbers in the files.")] = NumberFormat.BF16,
    base_name: Annotated[
        str | None,
        typer.Option("--base-name", metavar="NAME", help="Base model to name in the adapter (default: its own name)."),
    ] = None,
    generator: GeneratorOption = None,
    base_model: BaseModelOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Writes a memory's adapter, the base model, or both, for tools that run LoRA adapters."""
    paths = context or []
    if output is None and base is None:
        raise ConfigError("nothing to write: give --output FOLDER for the adapter, --base FOLDER for the base model")
    if output is not None and memory is None and not paths:
        raise ConfigError("nothing to make an adapter from: give a MEMORY or --context FILE")
    if output is None and (memory is not None or paths):
        raise ConfigError("a memory or document was given, but no place for its adapter; give --output FOLDER")
    documents = [read_document(path) for path in paths]
    held = loading.load_memory(memory) if memory else None
    model = loading.load_model(generator, base_model, device, "auto")

    from generative_adapter.export.base_folder import save_base_model

    report: dict[str, Any] = {}
    if output is not None:
        held = loading.read_into_memory(model, documents, held)
        name = base_name or model.base.name
        written = _write(model, held, form, output, name, rank, number_format.value)
        report["adapter"] = {"path": str(output), "format": form.value, "base_model": name, **written}
        if not as_json:
            print_text(_told(report["adapter"]))
    if base is not None:
        save_base_model(model.base, base, dtype=number_format.value)
        report["base"] = {"path": str(base), "dtype": number_format.value}
        if not as_json:
            print_text(f"{base}: {model.base.name} as safetensors, {number_format.value}")
    if as_json:
        print_json(report)


def _write(
    model: GenerativeAdapter,
    memory: ContextMemory,
    form: AdapterFormat,
    output: Path,
    name: str,
    rank: int | None,
    dtype: str,
) -> dict[str, Any]:
    """Writes a memory's adapter; gives what there is to say of it."""
    adapter = model.adapter(memory)
    if form is AdapterFormat.PEFT:
        from generative_adapter.export.peft import save_peft

        folder = save_peft(adapter, output, name, model=model.base.model, rank=rank, dtype=dtype)
        return {
            "rank": folder.rank,
            "dtype": folder.dtype,
            "targets": folder.num_targets,
            "zero_targets": folder.num_zero_targets,
            "truncation_error": folder.truncation_error,
            "bytes": folder.num_bytes,
        }
    if form is AdapterFormat.GGUF:
        from generative_adapter.export.gguf import save_gguf

        file = save_gguf(adapter, output, model.base.model, name, rank=rank, dtype=dtype)
        return {
            "architecture": file.architecture,
            "rank": file.rank,
            "dtype": file.dtype,
            "targets": file.num_targets,
            "truncation_error": file.truncation_error,
            "bytes": file.num_bytes,
        }
    from generative_adapter.export.base_folder import save_merged

    merged = save_merged(model.base, adapter, output, rank=rank, dtype=dtype)
    return {
        "rank": merged.rank,
        "dtype": merged.dtype,
        "targets": len(adapter),
        "truncation_error": merged.truncation_error,
        "bytes": merged.num_bytes,
    }


def _told(written: dict[str, Any]) -> str:
    kinds = {"peft": "PEFT adapter for", "gguf": "GGUF adapter for", "merged": "model with the adapter merged into"}
    lost = f", truncation error {written['truncation_error']:.3%}" if written["truncation_error"] else ""
    return (
        f"{written['path']}: {kinds[written['format']]} {written['base_model']}, rank {written['rank']}, "
        f"{written['dtype']}, {count(written['targets'], 'target')}, {written['bytes'] / 1e6:.1f} MB{lost}"
    )
