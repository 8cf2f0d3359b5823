"""Token caches of a recipe's sources: tokenised and packed once, under a name that tells their contents.

`prepare` fills the store of each `text`, `instructions` and `cloze` source, or goes on where it was interrupted;
`open_store` reads it. The name of a store's folder is a hash of all that decides its tokens: the source's files (name,
size, time of change) or hub data set, the tokenizer, and for instructions the wording of prompts. Texts of `cloze` are
kept as bytes of UTF-8 instead of tokens, since questions are made of words. Leaves out: the files' format
(`token_store`) and drawing contexts (`sources`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from generative_adapter.base_model.dequantise import cache_folder
from generative_adapter.base_model.prompts import answer_ids, question_ids
from generative_adapter.config import PromptConfig
from generative_adapter.config_mapping import to_mapping
from generative_adapter.data.cloze import can_be_asked
from generative_adapter.data.held_out_texts import packaged
from generative_adapter.data.hub import read_hub
from generative_adapter.data.paragraphs import paragraphs
from generative_adapter.data.records import Record, numbered_records, record_place
from generative_adapter.errors import DataError
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.source_config import SourceConfig
from generative_adapter.training.token_store import SHARD_TOKENS, EncodedRecord, TokenStore, fill_store, is_complete

logger = logging.getLogger(__name__)

FEWEST_TOKENS = 3  # of a text: two to take in, one to predict
CACHED_KINDS = ("text", "instructions", "cloze")
_TEXT_SHARD_BYTES = 4 * SHARD_TOKENS  # of `cloze`, whose tokens are bytes
_ENCODED_AT_ONCE = 256
_POLL_SECONDS = 1.0
_VERSION = 1

PrepareProgress = Callable[[str, int, int], None]  # source, records and tokens so far


def source_name(source: SourceConfig) -> str:
    """A source's name in messages."""
    return source.dataset or ", ".join(Path(path).name for path in source.paths) or source.kind


def records_of(source: SourceConfig, skip: int = 0, held_out: str = "refuse") -> Iterator[tuple[int, Record]]:
    """A source's records with the rows of the source up to and with each, after the first `skip` rows.

    Args:
        source: which files or data set.
        skip: rows that are passed over.
        held_out: `refuse` or `skip` records from held-out test splits; as the recipe's `held_out_texts`.

    Raises:
        DataError: a file or row can't be read, or is from a held-out split and refused; names it.
    """
    texts = packaged()
    skipped: Counter[str] = Counter()
    try:
        for row, place, record in _placed_records(source, skip):
            split = texts.split_of_record(record)
            if split is None:
                yield row, record
            elif held_out == "skip":
                skipped[split] += 1
            else:
                raise DataError(
                    f"{place()}: this text is held out for testing (split {split}), in whole or in part, so it is not "
                    "trained on; train on another file, or set held_out_texts: skip to leave such records out"
                )
    finally:
        if skipped:
            told = ", ".join(f"{number} of {split}" for split, number in skipped.most_common())
            total = skipped.total()
            logger.warning("%s: left out %d records held out for testing: %s", source_name(source), total, told)


def _placed_records(source: SourceConfig, skip: int) -> Iterator[tuple[int, Callable[[], str], Record]]:
    """Rows so far, where the record stands, and the record."""
    if source.dataset is not None:
        name = f"data set {source.dataset}, split {source.split!r}"
        rows = read_hub(
            source.dataset,
            subset=source.subset,
            split=source.split,
            revision=source.revision,
            converter=source.converter,
            skip=skip,
        )
        for row, record in rows:
            yield row, lambda row=row: f"{name}, row {row}", record
        return
    passed = 0  # records of the files before, each counted as a row
    for path in source.paths:
        for row, record in numbered_records(Path(path), source.converter):
            passed += 1
            if passed > skip:
                yield passed, lambda path=path, row=row: record_place(Path(path), row), record


def digest_of(text: str) -> int:
    """32 bits of a hash of a context, by which it is held out or not."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:4], "big")


def prepare(
    recipe: TrainingRecipe, tokenizer: PreTrainedTokenizerBase, progress: PrepareProgress | None = None
) -> list[Path]:
    """Fills the token stores of all sources that have one; complete ones are left as they are.

    Args:
        recipe: whose sources.
        tokenizer: the base model's.
        progress: is told of every record; of `cloze` with its bytes as tokens.

    Returns:
        The folders.

    Raises:
        DataError: a record can't be read; what was made before it stays.
    """
    folders = []
    for source in recipe.sources:
        if source.kind not in CACHED_KINDS:
            continue
        folder = _folder(recipe, source, tokenizer)
        name = source_name(source)
        fill_store(
            folder,
            _identity(recipe, source, tokenizer),
            lambda skip, source=source: _encoded(recipe, source, tokenizer, skip),
            max_records=source.max_records,
            max_tokens=source.max_tokens,
            **({"shard_tokens": _TEXT_SHARD_BYTES} if source.kind == "cloze" else {}),
            progress=None if progress is None else lambda records, tokens, name=name: progress(name, records, tokens),
        )
        logger.info("tokens of %s: %s", name, folder)
        folders.append(folder)
    return folders


def open_store(recipe: TrainingRecipe, source: SourceConfig, tokenizer: PreTrainedTokenizerBase) -> TokenStore:
    """The complete store of a source.

    Raises:
        DataError: it is not there, or damaged, or holds nothing.
    """
    store = TokenStore(_folder(recipe, source, tokenizer))
    if not len(store):
        expected = "; its questions are made of English prose" if source.kind == "cloze" else ""
        raise DataError(f"no usable record in {source_name(source)} for a source of kind {source.kind!r}{expected}")
    return store


def wait_for_stores(recipe: TrainingRecipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Waits until another process has filled all stores; it may take hours, longer than processes wait for another."""
    for source in recipe.sources:
        if source.kind in CACHED_KINDS:
            folder = _folder(recipe, source, tokenizer)
            while not is_complete(folder):
                time.sleep(_POLL_SECONDS)


def _folder(recipe: TrainingRecipe, source: SourceConfig, tokenizer: PreTrainedTokenizerBase) -> Path:
    root = Path(recipe.cache).expanduser() if recipe.cache is not None else cache_folder() / "tokens"
    key = json.dumps(_identity(recipe, source, tokenizer), sort_keys=True)
    stem = (source.dataset or Path(source.paths[0]).name).replace("/", "--").split(".")[0]
    return root / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _identity(recipe: TrainingRecipe, source: SourceConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    files = []
    for name in source.paths:
        path = Path(name)
        if not path.is_file():
            raise DataError(f"{path}: no such file; it is named as a source of kind {source.kind!r}")
        files.append([str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns])
    identity: dict[str, Any] = {
        "version": _VERSION,
        "kind": source.kind,
        "files": files,
        "hub": [source.dataset, source.subset, source.split, source.revision] if source.dataset else None,
        "converter": source.converter,
        "max_records": source.max_records,
        "max_tokens": source.max_tokens,
        "held_out_texts": packaged().digest,  # refused or skipped: what passes is the same
    }
    if source.kind != "cloze":
        identity["tokenizer"] = _tokenizer_digest(tokenizer)
    if source.kind == "instructions":
        identity |= {"prompt": to_mapping(recipe.prompt), "chat_template": tokenizer.chat_template}
    return identity


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _encoded(
    recipe: TrainingRecipe, source: SourceConfig, tokenizer: PreTrainedTokenizerBase, skip: int
) -> Iterator[EncodedRecord]:
    rows = records_of(source, skip, recipe.held_out_texts)
    if source.kind == "cloze":
        for row, record in rows:
            text = "".join(paragraphs(record.context))
            if can_be_asked(text):
                yield EncodedRecord(row, digest_of(record.context), [text.encode("utf-8", "replace")])
        return
    while batch := list(itertools.islice(rows, _ENCODED_AT_ONCE)):
        contexts = _token_ids(tokenizer, [record.context for _, record in batch])
        for (row, record), context in zip(batch, contexts, strict=True):
            if source.kind == "text":
                parts = [context] if len(context) >= FEWEST_TOKENS else []
            else:
                parts = (
                    [context, *_question_parts(record, recipe.prompt, tokenizer)]
                    if context and record.questions
                    else []
                )
            if parts:
                yield EncodedRecord(row, digest_of(record.context), parts)


def _question_parts(record: Record, prompt: PromptConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    for question in record.questions:
        yield question_ids(tokenizer, prompt, question.question)
        yield answer_ids(tokenizer, prompt, question.answers[0])


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text; special tokens in it are read letter by letter."""
    options: Any = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    encoded: Any = tokenizer(list(texts), **options)["input_ids"]
    return encoded
