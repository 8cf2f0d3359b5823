"""GenerativeAdapter: text -> chunks -> memory -> adapter -> answers. What most users need, in one class.

Leaves out: training, files other than plain strings, and exporting adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from generative_adapter.base_model.decoding import Answer, greedy_answers
from generative_adapter.base_model.inject import inject, merge
from generative_adapter.base_model.loading import BaseModel, load_base_model
from generative_adapter.base_model.prompts import (
    chat_ids,
    context_chunks,
    context_ids,
    end_ids,
    question_ids,
)
from generative_adapter.base_model.reading import in_text_order, read_chunks, reading_batches
from generative_adapter.base_model.text_blocks import block_chunks
from generative_adapter.checkpoint import GeneratorCheckpoint, find_generator, load_generator, read_generator_info
from generative_adapter.errors import ConfigError
from generative_adapter.generator.low_rank import LowRankAdapter
from generative_adapter.generator.memory import ContextMemory, DocumentEntry, text_digest
from generative_adapter.generator.protocol import ContextGenerator

ChunkProgress = Callable[[int, int], None]


class GenerativeAdapter:
    """A frozen base model with a trained generator.

    Args:
        base: the base model.
        checkpoint: a generator trained for it.
    """

    def __init__(self, base: BaseModel, checkpoint: GeneratorCheckpoint) -> None:
        self.base = base
        self.checkpoint = checkpoint
        self.generator_fingerprint = checkpoint.fingerprint

    @classmethod
    def from_pretrained(
        cls,
        generator: str | Path | None = None,
        *,
        base_model: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        any_base: bool = False,
    ) -> GenerativeAdapter:
        """A base model and its generator; without arguments the embedded base and the shipped generator, offline.

        Args:
            generator: file of a generator, a folder that holds one, or its hub id; None: the shipped one.
            base_model: hub id, folder or GGUF file; None: the one the generator was trained for.
            device: `auto` or a torch device.
            dtype: number format of the base model, `auto`, `float32`, `bfloat16` or `float16`.
            any_base: take a base model other than the generator's, of the same shapes.

        Raises:
            CheckpointError: when the generator can't be read.
            FingerprintMismatchError: when it was trained for another base model.
            BaseModelError: when the base model can't be loaded.
        """
        path = find_generator(generator)
        if base_model is None:
            base_model = read_generator_info(path)["training"].get("recipe", {}).get("base_model")
        base = load_base_model(base_model, device=device, dtype=dtype)
        return cls(base, load_generator(path, base, any_base=any_base))

    @property
    def generator(self) -> ContextGenerator:
        """The trained generator."""
        return self.checkpoint.generator

    def empty_memory(self) -> ContextMemory:
        """The memory of no context, S_0 = 0 or no rows; its adapter changes nothing."""
        keeps_tokens = self.generator.keeps_tokens
        dtype = torch.float32 if keeps_tokens else torch.float64
        states = {name: torch.zeros(shape, dtype=dtype) for name, shape in self.generator.state_shapes.items()}
        return ContextMemory(
            states, self.generator_fingerprint, self.base.fingerprint, self.base.name, keeps_tokens=keeps_tokens
        )

    def contextualize(
        self,
        text: str,
        memory: ContextMemory | None = None,
        *,
        name: str | None = None,
        progress: ChunkProgress | None = None,
    ) -> ContextMemory:
        """The memory of a text, in one forward pass a chunk; section 2.2, eq. (3), arXiv:2411.05877.

        With the paper's generator chunk t is read by the base model under the adapter of the chunks before it, S_{t-1},
        those of `memory` included, so time and space for a chunk don't depend on what came before. To keep documents
        apart, so that each can be forgotten again, read each without `memory` and add the memories. A generator whose
        chunks are independent reads them side by side, and adds the text's memory to `memory` by itself.

        Args:
            text: the context.
            memory: what was read before; None: nothing. It is not changed.
            name: what to call the text in the memory's list of documents.
            progress: called with chunks done and chunks in all.

        Returns:
            A new memory.

        Raises:
            EmptyContextError: when the text holds nothing but white space.
            FingerprintMismatchError: when another generator wrote `memory`, or this one from another base model.
        """
        config, independent = self.checkpoint.config, self.generator.independent_chunks
        split = block_chunks if independent else context_chunks
        chunks = split(self.base.tokenizer, text, config.chunk_tokens)
        empty = self.empty_memory()
        if memory is None:
            memory = empty
        memory.check_generator(self.generator_fingerprint)
        empty.check_kin(memory)
        digest = text_digest(text)
        entry = DocumentEntry(name or f"text-{digest[:8]}", digest, sum(map(len, chunks)), len(chunks))
        if independent:
            return memory + self._read_side_by_side(chunks, empty, entry, progress)
        return self._read_in_order(chunks, memory, entry, progress)

    def forget(self, memory: ContextMemory, text: str) -> ContextMemory:
        """The memory as if `text` had never been read, to floating-point error; exactly where tokens are kept.

        Raises:
            DataError: when the memory doesn't hold the text, or holds it as part of a stream.
            FingerprintMismatchError: when another generator wrote `memory`.
        """
        memory.check_generator(self.generator_fingerprint)
        return memory - self.contextualize(text)

    def adapter(self, memory: ContextMemory) -> LowRankAdapter:
        """The low-rank adapter of a memory, eq. (9), arXiv:2411.05877, in float32 on the base model's device.

        Raises:
            FingerprintMismatchError: when another generator wrote `memory`.
        """
        memory.check_generator(self.generator_fingerprint)
        return self.generator.adapter({name: state.to(self.base.device) for name, state in memory.states.items()})

    def merged(self, memory: ContextMemory) -> torch.nn.Module:
        """A copy of the base model with the memory's adapter in its weights; the base model is unchanged."""
        return merge(self.base.model, self.adapter(memory))

    def generate(
        self,
        question: str,
        memory: ContextMemory | None = None,
        *,
        context: str | None = None,
        max_new_tokens: int = 64,
    ) -> str:
        """The answer to one question; see `answer`."""
        contexts = None if context is None else [context]
        return self.answer([question], memory, contexts=contexts, max_new_tokens=max_new_tokens)[0].text

    def answer(
        self,
        questions: Sequence[str],
        memories: ContextMemory | Sequence[ContextMemory] | None = None,
        *,
        contexts: Sequence[str] | None = None,
        max_new_tokens: int = 64,
    ) -> list[Answer]:
        """Greedy answers to a batch of questions.

        With `memories` the adapted model answers and the context is not in the prompt; with `contexts` the plain base
        model answers with the whole context in the prompt; with neither it answers closed-book.

        Args:
            questions: one a row.
            memories: one for all rows, or one a row.
            contexts: texts for the prompt, one a row.
            max_new_tokens: longest answer in tokens.

        Raises:
            ConfigError: when both memories and contexts are given, their numbers don't fit, a question is empty, or
                `max_new_tokens` is not positive.
            FingerprintMismatchError: when another generator wrote a memory.
        """
        if memories is not None and contexts is not None:
            raise ConfigError("give memories or contexts, not both: an adapted model answers without the text")
        if any(not question.strip() for question in questions):
            raise ConfigError("a question is empty; give at least one word")
        if not questions:
            return []
        prompt, tokenizer = self.checkpoint.prompt, self.base.tokenizer
        if contexts is None:
            prompts = [question_ids(tokenizer, prompt, asked) for asked in questions]
        else:
            if len(contexts) != len(questions):
                raise ConfigError(f"{len(questions)} questions need as many contexts, got {len(contexts)}")
            pairs = zip(contexts, questions, strict=True)
            prompts = [context_ids(tokenizer, prompt, text, asked) for text, asked in pairs]
        with self._adapted(memories, len(questions)):
            return greedy_answers(self.base, prompts, max_new_tokens, self._end_ids)

    def chat(
        self, messages: list[dict[str, str]], memory: ContextMemory | None = None, *, max_new_tokens: int = 256
    ) -> str:
        """The next turn of a conversation in the tokenizer's chat template, under the memory's adapter if one is given.

        A conversation of one question is put as `answer` puts it, in the generator's own wording.

        Raises:
            ConfigError: when there is no message, the tokenizer has no chat template and there are several, or
                `max_new_tokens` is not positive.
            FingerprintMismatchError: when another generator wrote `memory`.
        """
        tokenizer = self.base.tokenizer
        if not messages:
            raise ConfigError("chat needs at least one message")
        if len(messages) == 1 and messages[0].get("role") == "user":
            ids = question_ids(tokenizer, self.checkpoint.prompt, messages[0]["content"])
        elif tokenizer.chat_template:
            ids = chat_ids(tokenizer, messages)
        else:
            raise ConfigError(f"{self.base.name} has no chat template, so it can take one question at a time only")
        with self._adapted(memory, 1):
            return greedy_answers(self.base, [ids], max_new_tokens, self._end_ids)[0].text

    @property
    def _end_ids(self) -> list[int]:
        return end_ids(self.base.tokenizer, self.checkpoint.prompt)

    def _read_in_order(
        self, chunks: Sequence[list[int]], memory: ContextMemory, entry: DocumentEntry, progress: ChunkProgress | None
    ) -> ContextMemory:
        """The memory after the chunks of one document, each read under the adapter of all before it."""
        before, num_tokens = memory.documents, 0
        for number, chunk in enumerate(chunks, start=1):
            num_tokens += len(chunk)
            so_far = replace(entry, num_tokens=num_tokens, num_chunks=number, read_after=len(before))
            with self._adapted(memory if before or number > 1 else None, 1):
                added = read_chunks(self.base, self.generator, [chunk])
            memory = memory.accumulate(added, (*before, so_far))
            if progress is not None:
                progress(number, len(chunks))
        return memory

    def _read_side_by_side(
        self, chunks: Sequence[list[int]], empty: ContextMemory, entry: DocumentEntry, progress: ChunkProgress | None
    ) -> ContextMemory:
        """The memory of one document's chunks, read in batches of bounded size, short chunks first.

        Rows of kept tokens stand in the order of the text.
        """
        memory, done = empty, 0
        kept: list[dict[str, Tensor]] = []
        adapter = self.generator.reading_adapter
        with nullcontext() if adapter is None else inject(self.base.model, adapter):
            for batch in reading_batches(sorted(chunks, key=len)):
                added = read_chunks(self.base, self.generator, batch)
                if self.generator.keeps_tokens:
                    kept.append(added)
                else:
                    memory = memory.accumulate(added, (entry,))
                for _ in batch:
                    done += 1
                    if progress is not None:
                        progress(done, len(chunks))
        if kept:
            joined = {name: torch.cat([each[name] for each in kept]) for name in empty.states}
            lengths = [len(chunk) for chunk in chunks]
            num_rows = [self.generator.num_rows(length) for length in lengths]
            if num_rows != lengths:
                entry = replace(entry, kept_rows=sum(num_rows))
            in_order = {name: in_text_order(rows, lengths, num_rows) for name, rows in joined.items()}
            memory = empty.accumulate(in_order, (entry,))
        return memory

    @contextmanager
    def _adapted(self, memories: ContextMemory | Sequence[ContextMemory] | None, rows: int) -> Iterator[None]:
        if memories is None:
            yield
            return
        if isinstance(memories, ContextMemory):
            with inject(self.base.model, self.adapter(memories)):
                yield
            return
        if len(memories) != rows:
            raise ConfigError(f"{rows} questions need one memory for all or one each, got {len(memories)}")
        made = {id(memory): self.adapter(memory) for memory in memories}
        with inject(self.base.model, [made[id(memory)] for memory in memories]):
            yield
