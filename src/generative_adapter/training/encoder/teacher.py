"""What a teacher that reads the passage says where answers are given, computed once and kept beside the states.

The teacher is a base model with the passage in its prompt, as `scripts/questions/train_reader.py` makes one. It sees
which other words would do as well and how sure a question is, which its one answer does not tell (Hinton et al. 2015;
for lookups of phrases Lee et al. 2021, DensePhrases). Leaves out: which questions it is asked (`preparing`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import end_ids, pad_id, plain_ids, separator_ids, start_ids
from generative_adapter.config import PromptConfig
from generative_adapter.errors import ConfigError
from generative_adapter.training.distillation import likeliest_tokens
from generative_adapter.training.encoder.frozen_states import Asked, batches, padded
from generative_adapter.training.encoder.passages import AskedQuestion, Passage

_ROW_QUESTIONS = 8
_SAVE_SECONDS = 120
TeacherProgress = Callable[[str, int, int], None]
_Key = bytes


@dataclass(frozen=True)
class TaughtAnswer:
    """The teacher's likeliest tokens at each token of an answer, the one that ends it with them.

    Attributes:
        tokens: `[answer tokens, top_k]`.
        probabilities: of these among each other, `[answer tokens, top_k]`, float32.
    """

    tokens: Tensor
    probabilities: Tensor


class TeacherAnswers:
    """Answers of a teacher, by passage and question.

    Args:
        teacher: the base model that reads passages; what it says is kept for it alone.
        prompt: wording of the questions' prompts.
        end: text that ends the teacher's answers, which stands for the end of the prompts' answers; None: the same.
        top_k: how many tokens are kept.

    Raises:
        ConfigError: `end` is no token, or nothing ends an answer of the prompts.
    """

    def __init__(self, teacher: BaseModel, prompt: PromptConfig, end: str | None, top_k: int) -> None:
        self._teacher, self.top_k = teacher, top_k
        tokenizer = teacher.tokenizer
        self._start, self._separator = start_ids(tokenizer), separator_ids(tokenizer)
        self._end: tuple[int, int] | None = None
        if end is not None:
            own = plain_ids(tokenizer, end)
            if len(own) != 1:
                raise ConfigError(f"encoder_training.teacher_end must be one token of the teacher's, {end!r} is {own}")
            ours = end_ids(tokenizer, prompt)
            if not ours:
                raise ConfigError("encoder_training.teacher_end: nothing ends an answer here; set prompt.end")
            self._end = (own[0], ours[0])
        self._kind = {"teacher": teacher.fingerprint, "end": str(end), "top_k": str(top_k)}
        self._known: dict[_Key, TaughtAnswer] = {}

    def load(self, folder: Path) -> None:
        """Takes over what a folder holds of this teacher; files of others are left alone."""
        for path in sorted(folder.glob("teacher-*.safetensors")):
            with safe_open(path, "pt") as file:
                if {name: file.metadata().get(name) for name in self._kind} != self._kind:
                    continue
                keys, firsts = file.get_tensor("keys").numpy(), file.get_tensor("firsts").tolist()
                tokens, probabilities = file.get_tensor("tokens"), file.get_tensor("probabilities")
            for row, key in enumerate(keys):
                own = slice(firsts[row], firsts[row + 1])
                self._known[key.tobytes()] = TaughtAnswer(tokens[own].long(), probabilities[own].float())

    def of(self, passages: Sequence[Passage], asked: Sequence[Sequence[Asked]]) -> dict[Asked, TaughtAnswer]:
        """What is known of the questions of some passages; `asked` has their places."""
        found = {}
        for passage, places in zip(passages, asked, strict=True):
            for question, place in zip(passage.questions, places, strict=True):
                if (taught := self._known.get(_key(passage, question))) is not None:
                    found[place] = taught
        return found

    def fill(
        self,
        passages: Sequence[Passage],
        folder: Path,
        rank: int = 0,
        size: int = 1,
        progress: TeacherProgress | None = None,
    ) -> None:
        """Asks the teacher what isn't known yet, this process's part of it, and keeps that in a file of the folder.

        Args:
            passages: that are asked about.
            folder: of the files; written to every two minutes, so that a run that was cut short goes on from there.
            rank: number of this process.
            size: how many there are.
            progress: called with what is done, tokens done and in all.

        Raises:
            ConfigError: the teacher's attention doesn't reach over a passage with its questions.
        """
        rows = [row for passage in passages for row in self._rows(passage)][rank::size]
        rows.sort(key=lambda row: row.num_tokens)
        window = getattr(self._teacher.model.config.get_text_config(), "sliding_window", None)
        if rows and window is not None and window < rows[-1].num_tokens:
            raise ConfigError(
                f"encoder_training.teacher: {self._teacher.source} attends within {window} tokens, and a passage with "
                f"its questions has {rows[-1].num_tokens}; name another one, or make context_tokens smaller"
            )
        total, done = sum(row.num_tokens for row in rows), 0
        made: dict[_Key, TaughtAnswer] = {}
        saved = told = time.monotonic()
        number = len(list(folder.glob("teacher-*.safetensors")))
        path = folder / f"teacher-{number:03}-{rank}.safetensors"
        for pairs in batches([(row, row.ids) for row in rows]):
            batch = [row for row, _ in pairs]
            made |= self._ask(batch)
            done += sum(row.num_tokens for row in batch)
            if time.monotonic() - saved > _SAVE_SECONDS or done == total:
                self._save(path, made)
                saved = time.monotonic()
            if progress is not None and (time.monotonic() - told > 20 or done == total):
                told = time.monotonic()
                progress("asking the teacher", done, total)
        self._known |= made

    def _rows(self, passage: Passage) -> Iterator[_Row]:
        unknown = [each for each in passage.questions if _key(passage, each) not in self._known]
        text = [*self._start, *(token for chunk in passage.chunks for token in chunk)]
        skipped = len(self._start)
        for at in range(0, len(unknown), _ROW_QUESTIONS):
            own = unknown[at : at + _ROW_QUESTIONS]
            yield _Row(passage, own, text, [[*self._separator, *each.ids[skipped:-1]] for each in own])

    @torch.no_grad()
    def _ask(self, rows: Sequence[_Row]) -> dict[_Key, TaughtAnswer]:
        device = self._teacher.device
        ids, _ = padded([row.ids for row in rows], pad_id(self._teacher.tokenizer))
        segments, positions = torch.zeros_like(ids), torch.zeros_like(ids)
        supervised = torch.zeros_like(ids, dtype=torch.bool)
        asked: list[tuple[_Key, int]] = []
        for number, row in enumerate(rows):
            at = len(row.text)
            segments[number, :at] = 1
            positions[number, :at] = torch.arange(at)
            for segment, (question, tail) in enumerate(zip(row.questions, row.tails, strict=True), start=2):
                stop = at + len(tail)
                segments[number, at:stop] = segment
                positions[number, at:stop] = torch.arange(len(row.text), len(row.text) + len(tail))
                supervised[number, stop - question.num_labels : stop] = True
                asked.append((_key(row.passage, question), question.num_labels))
                at = stop
        mask = _shared_text_mask(segments, self._teacher.dtype).to(device)
        tokens, probabilities = likeliest_tokens(
            self._teacher, ids.to(device), mask, positions.to(device), supervised.to(device), self.top_k
        )
        if self._end is not None:
            tokens[tokens == self._end[0]] = self._end[1]
        sizes = [count for _, count in asked]
        each = zip(tokens.cpu().split(sizes), probabilities.cpu().split(sizes), strict=True)
        return {key: TaughtAnswer(*own) for (key, _), own in zip(asked, each, strict=True)}

    def _save(self, path: Path, made: dict[_Key, TaughtAnswer]) -> None:
        keys = np.frombuffer(b"".join(made), np.uint8).reshape(len(made), -1)
        tensors = {
            "keys": torch.from_numpy(keys.copy()),
            "firsts": torch.tensor([0, *(len(each.tokens) for each in made.values())]).cumsum(0),
            "tokens": torch.cat([each.tokens for each in made.values()]).int(),
            "probabilities": torch.cat([each.probabilities for each in made.values()]).half(),
        }
        unfinished = path.with_suffix(".part")
        save_file(tensors, unfinished, self._kind)
        unfinished.replace(path)


@dataclass(frozen=True)
class _Row:
    """A passage and some of its questions, each of which sees the passage and itself."""

    passage: Passage
    questions: Sequence[AskedQuestion]
    text: list[int]
    tails: list[list[int]]

    @property
    def ids(self) -> list[int]:
        return [*self.text, *(token for tail in self.tails for token in tail)]

    @property
    def num_tokens(self) -> int:
        return len(self.text) + sum(map(len, self.tails))


def _shared_text_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive causal mask: segment 1 is seen by all, others by themselves alone, `[rows, 1, tokens, tokens]`."""
    readable = (segments.unsqueeze(2) == segments.unsqueeze(1)) | (segments == 1).unsqueeze(1)
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    return torch.zeros(readable.shape, dtype=dtype).masked_fill_(~(readable & causal), torch.finfo(dtype).min)[:, None]


def _key(passage: Passage, question: AskedQuestion) -> _Key:
    """Of a question and what it is asked about."""
    text = f"{passage.chunks}/{question.ids}/{question.num_prompt}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def taught_losses(
    logits: Tensor,
    losses: Tensor,
    labels: Tensor,
    questions: Sequence[tuple[Asked, int]],
    taught: Mapping[Asked, TaughtAnswer],
) -> tuple[Tensor, Tensor]:
    """Divergence sum_k p_k (log p_k - log q_k) from the teacher's p at each token of an answer that it was asked.

    Args:
        logits: of answer tokens, `[tokens, vocabulary]`; q is their softmax.
        losses: -log q of the right ones, `[tokens]`, with gradients.
        labels: these, `[tokens]`.
        questions: of each token, and its number in the answer.
        taught: what the teacher says.

    Returns:
        the divergences in nats, `[taught tokens]`, and the numbers of their tokens.
    """
    rows = [row for row, (asked, _) in enumerate(questions) if asked in taught]
    at = torch.tensor(rows, dtype=torch.long, device=logits.device)
    if not rows:
        return losses.new_zeros(0), at
    own = [(taught[asked], number) for asked, number in (questions[row] for row in rows)]
    tokens = torch.stack([each.tokens[number] for each, number in own]).to(logits.device)
    shares = torch.stack([each.probabilities[number] for each, number in own]).to(losses)
    total = losses[at] + logits[at, labels[at]].to(losses)  # log sum exp of all logits
    said = logits[at.unsqueeze(1), tokens].to(losses) - total.unsqueeze(1)
    return (torch.special.xlogy(shares, shares) - shares * said).sum(-1), at
