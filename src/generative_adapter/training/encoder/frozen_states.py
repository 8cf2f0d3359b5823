"""FrozenStates: what the frozen base model makes of passages and questions, computed once and kept on disk.

While a generator is trained the base model never changes, and below the lowest adapted block nothing else does either:
the states of a passage that the encoder reads, a question's tokens as they enter that block, and the inputs of the
targets where lookups are trained are the same in every step. Files are memory-mapped; several processes fill them
together. Leaves out: which passages there are (`passages`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from generative_adapter.base_model.capture import capture_block_inputs, on_block_inputs
from generative_adapter.base_model.inject import find_linear
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import pad_id, start_ids
from generative_adapter.config import TargetShape
from generative_adapter.training.encoder.passages import Passage

BATCH_TOKENS = 4096
_MULTIPLE = 32  # lengths are padded to one, so that few shapes occur
StatesProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Asked:
    """A question's place in the files.

    Attributes:
        passage: number of its passage.
        number: number among the passage's questions.
        first_token: of its ids in the file of question states; nothing where they are read from another folder.
        first_label: of its answer's tokens in the file of target inputs; likewise.
    """

    passage: int
    number: int
    first_token: int
    first_label: int


class FrozenStates:
    """States of passages and questions under the plain base model, in files of one folder.

    Args:
        folder: of the files.
        passages: the passages, in an order that stays.
        states: blocks whose inputs the encoder reads, beside the embeddings.
        start_block: block whose inputs are kept of questions.
        targets: linears whose inputs are kept at the tokens before the first labels; may be none.
        num_labels: at most so many labels of an answer are looked up.
        hidden_size: d_h.
        known: states of the same base model in another folder, open for reading: what it holds of the same passages
            and questions is read there and has no place in this folder's files.
    """

    def __init__(
        self,
        folder: Path,
        passages: Sequence[Passage],
        states: Sequence[int],
        start_block: int,
        targets: Sequence[TargetShape],
        num_labels: int,
        hidden_size: int,
        known: FrozenStates | None = None,
    ) -> None:
        self.folder, self.passages = folder, passages
        self.states, self.start_block = tuple(states), start_block
        self.targets, self.num_labels, self.hidden_size = tuple(targets), num_labels, hidden_size
        self._known, self._columns = known, slice(None)
        self.known_passages: dict[int, int] = {}
        self.known_questions: dict[tuple[int, int], Asked] = {}
        if known is not None:
            self._find(known)
        sizes = [0 if at in self.known_passages else each.num_tokens for at, each in enumerate(passages)]
        self.first_token = np.concatenate([[0], np.cumsum(sizes)])
        self.asked: list[list[Asked]] = []
        tokens = labels = self.num_question_tokens = 0
        for index, each in enumerate(passages):
            rows = []
            for number, question in enumerate(each.questions):
                rows.append(Asked(index, number, tokens, labels))
                self.num_question_tokens += len(question.ids)
                if (index, number) not in self.known_questions:
                    tokens += len(question.ids)
                    labels += min(num_labels, question.num_labels)
            self.asked.append(rows)
        widths = sum(target.in_features for target in targets)
        self._shapes = {
            "passages": (int(self.first_token[-1]), len(self.states) * hidden_size),
            "questions": (tokens, hidden_size),
            "lookups": (labels, widths),
        }
        self._files: dict[str, np.memmap[Any, Any]] = {}

    @property
    def folders(self) -> list[Path]:
        """This folder, and those whose states are read in its place."""
        return [self.folder, *(self._known.folders if self._known is not None else ())]

    @property
    def num_bytes(self) -> int:
        """Bytes of this folder's files."""
        return sum(2 * rows * columns for rows, columns in self._shapes.values())

    def open(self, mode: Literal["r", "r+", "w+"] = "r") -> None:
        """Maps the files; with mode `w+` they are made anew, with `r+` they can be written to."""
        for name, shape in self._shapes.items():
            if 0 in shape:
                continue  # no target's inputs are kept, or all states are read from another folder
            self._files[name] = np.memmap(self.folder / f"{name}.bf16", np.int16, mode, shape=shape)

    def passage_states(self, index: int) -> Tensor:
        """The states of a passage's tokens, of all chunks behind one another, `[tokens, states * d_h]`, bfloat16."""
        there = self.known_passages.get(index)
        if there is not None and self._known is not None:
            found = self._known.passage_states(there)
            blocks = found.view(len(found), -1, self.hidden_size)
            return blocks[:, self._columns].reshape(len(found), -1)
        return self._read("passages", int(self.first_token[index]), int(self.first_token[index + 1]))

    def question_states(self, asked: Asked) -> Tensor:
        """A question's tokens as they enter the start block, `[tokens, d_h]`, bfloat16."""
        there = self.known_questions.get((asked.passage, asked.number))
        if there is not None and self._known is not None:
            return self._known.question_states(there)
        length = len(self.passages[asked.passage].questions[asked.number].ids)
        return self._read("questions", asked.first_token, asked.first_token + length)

    def lookup_inputs(self, asked: Asked) -> Tensor:
        """Inputs of all kept targets at the tokens before the first labels, `[labels, d_in of all]`, bfloat16."""
        there = self.known_questions.get((asked.passage, asked.number))
        if there is not None and self._known is not None:
            return self._known.lookup_inputs(there)
        question = self.passages[asked.passage].questions[asked.number]
        stop = asked.first_label + min(self.num_labels, question.num_labels)
        return self._read("lookups", asked.first_label, stop)

    def _find(self, known: FrozenStates) -> None:
        """Notes what another folder holds of the same passages and questions; `fill` leaves that out."""
        if set(self.states) <= set(known.states):
            numbers = {each.chunks: number for number, each in enumerate(known.passages)}
            self._columns = [known.states.index(state) for state in self.states]
            found = [(at, numbers.get(each.chunks)) for at, each in enumerate(self.passages)]
            self.known_passages = {at: there for at, there in found if there is not None}
        same_lookups = not self.targets or (self.targets, self.num_labels) == (known.targets, known.num_labels)
        if self.start_block != known.start_block or not same_lookups:
            return
        asked: dict[tuple[int, ...], Asked] = {}
        for passage, each in zip(known.passages, known.asked, strict=True):
            asked |= {question.ids: one for question, one in zip(passage.questions, each, strict=True)}
        for at, passage in enumerate(self.passages):
            for number, question in enumerate(passage.questions):
                if question.ids in asked:
                    self.known_questions[at, number] = asked[question.ids]

    def _read(self, name: str, start: int, stop: int) -> Tensor:
        return torch.from_numpy(np.array(self._files[name][start:stop])).view(torch.bfloat16)

    def _write(self, name: str, start: int, values: Tensor) -> None:
        self._files[name][start : start + len(values)] = values.to(torch.bfloat16).cpu().view(torch.int16).numpy()

    @torch.no_grad()
    def fill(self, base: BaseModel, rank: int = 0, size: int = 1, progress: StatesProgress | None = None) -> None:
        """Computes the part of all states that falls to a process; the files must be open for writing.

        Args:
            base: the frozen base model.
            rank: number of this process.
            size: how many there are.
            progress: called with what is read, and tokens done and in all.
        """
        start, pad = start_ids(base.tokenizer), pad_id(base.tokenizer)
        chunks = []
        for index, each in enumerate(self.passages):
            at = int(self.first_token[index])
            for chunk in each.chunks if index not in self.known_passages else ():
                chunks.append((at, chunk))
                at += len(chunk)
        self._each(chunks[rank::size], "passages", progress, lambda batch: self._fill_passages(base, batch, start, pad))
        rows = [asked for each in self.asked for asked in each]
        wanted = [asked for asked in rows if (asked.passage, asked.number) not in self.known_questions]
        pairs = [(asked, self.passages[asked.passage].questions[asked.number]) for asked in wanted]
        questions = [((asked, question), question.ids) for asked, question in pairs]
        self._each(questions[rank::size], "questions", progress, lambda batch: self._fill_questions(base, batch, pad))
        for file in self._files.values():
            file.flush()

    @staticmethod
    def _each(
        items: Sequence[tuple[Any, Sequence[int]]],
        what: str,
        progress: StatesProgress | None,
        run: Callable[[Sequence[tuple[Any, Sequence[int]]]], None],
    ) -> None:
        total = sum(len(ids) for _, ids in items)
        done, told = 0, time.monotonic()
        for batch in batches(sorted(items, key=lambda item: len(item[1]))):
            run(batch)
            done += sum(len(ids) for _, ids in batch)
            if progress is not None and (time.monotonic() - told > 20 or done == total):
                told = time.monotonic()
                progress(what, done, total)

    def _fill_passages(
        self, base: BaseModel, batch: Sequence[tuple[int, Sequence[int]]], start: Sequence[int], pad: int
    ) -> None:
        ids, mask = padded([[*start, *ids] for _, ids in batch], pad)
        hidden = capture_block_inputs(base.model, self.states, ids.to(base.device), mask.to(base.device))
        joined = torch.cat([hidden[state] for state in self.states], dim=-1)
        for row, (at, own) in enumerate(batch):
            self._write("passages", at, joined[row, len(start) : len(start) + len(own)])

    def _fill_questions(self, base: BaseModel, batch: Sequence[tuple[Any, Sequence[int]]], pad: int) -> None:
        ids, mask = padded([ids for _, ids in batch], pad)
        inputs: dict[str, Tensor] = {}
        if not self.targets:
            hidden = capture_block_inputs(base.model, [self.start_block], ids.to(base.device), mask.to(base.device))
            for row, ((asked, _), own) in enumerate(batch):
                self._write("questions", asked.first_token, hidden[self.start_block][row, : len(own)])
            return
        captured: dict[int, Tensor] = {}
        with on_block_inputs(base.model, [self.start_block], captured.__setitem__), self._inputs(base, inputs):
            decoder = getattr(base.model, "base_model", base.model)
            decoder(input_ids=ids.to(base.device), attention_mask=mask.long().to(base.device), use_cache=False)
        hidden = captured[self.start_block]
        for row, ((asked, question), own) in enumerate(batch):
            self._write("questions", asked.first_token, hidden[row, : len(own)])
            first = question.num_prompt - 1
            wanted = slice(first, first + min(self.num_labels, question.num_labels))
            values = torch.cat([inputs[target.name][row, wanted] for target in self.targets], dim=-1)
            self._write("lookups", asked.first_label, values)

    @contextmanager
    def _inputs(self, base: BaseModel, into: dict[str, Tensor]) -> Iterator[None]:
        def keep(name: str) -> Callable[..., None]:
            def hook(_module: object, args: tuple[Any, ...]) -> None:
                into[name] = args[0]

            return hook

        with ExitStack() as stack:
            for target in self.targets:
                module = find_linear(base.model, target.name)
                stack.callback(module.register_forward_pre_hook(keep(target.name)).remove)
            yield


def word_counts(states: FrozenStates, num_words: int) -> Tensor:
    """How often each word stands in the passages, `[num_words]`."""
    counts = torch.zeros(num_words)
    for each in states.passages:
        for chunk in each.chunks:
            counts += torch.bincount(torch.tensor(chunk), minlength=num_words)
    return counts


def batches(items: Sequence[tuple[Any, Sequence[int]]]) -> Iterator[list[tuple[Any, Sequence[int]]]]:
    """Items of ascending length in runs of at most `BATCH_TOKENS` with padding, or of one item."""
    batch: list[tuple[Any, Sequence[int]]] = []
    for item in items:
        if batch and (len(batch) + 1) * rounded(len(item[1])) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def rounded(length: int) -> int:
    """A length padded to a multiple of 32."""
    return -(-length // _MULTIPLE) * _MULTIPLE


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of token ids with padding on the right, and True for real tokens, `[rows, tokens]` both."""
    width = rounded(max(map(len, rows)))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, own in enumerate(rows):
        ids[row, : len(own)] = torch.tensor(own)
        mask[row, : len(own)] = True
    return ids, mask
