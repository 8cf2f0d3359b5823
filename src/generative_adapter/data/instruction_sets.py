"""Which fields of which data set make a record: one function a set, for its schema on the hub.

The sets are those of Table 3 of arXiv:2411.05877 with SQuAD and plain text. Each function takes a row and its place
(for errors), returns a record of this row alone, or None where the row is left out, and raises a DataError that names
the field where one is missing or of another kind. Where a set has several acceptable answers all are kept.

Leaves out: putting rows together and the names (`converters.py`).
"""

from __future__ import annotations

from typing import Any

from generative_adapter.data.rows import (
    Question,
    Record,
    Row,
    answers_in,
    checked_text,
    is_blank,
    kind,
    text_at,
    texts_at,
    value_at,
)
from generative_adapter.errors import DataError

BOOKSUM_INSTRUCTION = "Write a summary of the text above."
NO_ANSWER = "No Answer Present."
# Table 4 of the paper; MetaICL's own names have some hyphens for underscores.
METAICL_TRAIN_TASKS = frozenset((
    "piqa", "hate_speech_offensive", "google_wellformed_query", "social_i_qa", "circa", "quoref", "glue_sst2",
    "scitail", "emo", "cosmos_qa", "freebase_qa", "ag_news", "art", "paws", "kilt_ay2", "glue_qnli", "quail",
    "ade_corpus_v2_classification", "sciq", "hatexplain", "emotion", "glue_qqp", "kilt_fever", "kilt_nq",
    "dbpedia_14", "kilt_zsre", "hellaswag", "squad_with_context", "hotpot_qa", "glue_mnli", "ropes",
    "squad_no_context", "kilt_hotpotqa", "discovery", "superglue_record", "race_middle", "race_high", "lama_trex",
    "swag", "gigaword", "amazon_polarity", "biomrc", "tab_fact", "tweet_eval_emoji", "tweet_eval_offensive",
    "tweet_eval_sentiment", "tweet_qa", "imdb", "lama_conceptnet", "liar", "anli", "wiki_qa", "kilt_trex",
    "wikisql", "wino_grande", "wiqa", "search_qa", "xsum", "yahoo_answers_topics", "yelp_polarity",
    "yelp_review_full",
))  # fmt: skip


def read_text(row: Row, where: str) -> Record | None:
    """Plain text: `text`, and `source` where it is a text. Blank documents are left out: they teach nothing."""
    if is_blank(row, "text", where):
        return None
    source = row.get("source")
    return Record(text_at(row, "text", where), source=source if isinstance(source, str) else "")


def read_questions(row: Row, where: str) -> Record:
    """This project's own rows: `context` and `qa`, a list of objects with `question` and `answers`."""
    questions = questions_in(row.get("qa"), where, '"qa"')
    num_unanswered = len(row["qa"]) - len(questions)
    return Record(text_at(row, "context", where), questions, title=title_in(row), num_unanswered=num_unanswered)


def title_in(row: Row) -> str:
    """The `title` of a row, as it would be written in a text; empty where there is none."""
    title = row.get("title")
    return title.replace("_", " ").strip() if isinstance(title, str) else ""


def questions_in(items: Any, where: str, field: str) -> tuple[Question, ...]:
    """The questions of a list of {"question", "answers"}; those without an answer are left out.

    Raises:
        DataError: it is no such list; the message names `field`.
    """
    if not isinstance(items, list):
        raise DataError(f'{where}: {field} is {kind(items)}; expected a list of {{"question", "answers"}}')
    questions = []
    for item in items:
        if not isinstance(item, dict):
            raise DataError(f'{where}: {field} holds {kind(item)}; expected objects with "question" and "answers"')
        question = text_at(item, "question", where)
        if answers := answers_in(item.get("answers"), where):
            questions.append(Question(question, answers))
    return tuple(questions)


def read_squad(row: Row, where: str) -> Record:
    """SQuAD: `context`, `question`, `answers.text`. A question without an answer (version 2) is left out."""
    question = text_at(row, "question", where).strip()
    answers = answers_in(row.get("answers"), where)
    questions = (Question(question, answers),) if answers else ()
    context = text_at(row, "context", where)
    return Record(context, questions, title=title_in(row), num_unanswered=1 - len(questions))


def read_coqa(row: Row, where: str) -> Record:
    """CoQA: `story`, `questions`, `answers.input_text`.

    Each question stands alone, as the paper's mean instruction of 5.5 words says, although a follow-up ("Why?") then
    can't be told from another; `read_coqa_turns` puts the turns before it.
    """
    return Record(text_at(row, "story", where), tuple(Question(q, (a,)) for q, a in _turns(row, where)))


def read_coqa_turns(row: Row, where: str) -> Record:
    """CoQA as `read_coqa`, each question after all earlier turns, "Question: ..." and "Answer: ..." on a line each."""
    questions = []
    before = ""
    for question, answer in _turns(row, where):
        questions.append(Question(f"{before}Question: {question}" if before else question, (answer,)))
        before += f"Question: {question}\nAnswer: {answer}\n"
    return Record(text_at(row, "story", where), tuple(questions))


def _turns(row: Row, where: str) -> list[tuple[str, str]]:
    questions, answers = texts_at(row, "questions", where), texts_at(row, "answers.input_text", where)
    if len(questions) != len(answers):
        raise DataError(
            f'{where}: "questions" has {len(questions)} items and "answers.input_text" {len(answers)}; '
            "expected an answer to each question"
        )
    return [(q.strip(), a.strip()) for q, a in zip(questions, answers, strict=True) if q.strip() and a.strip()]


def read_drop(row: Row, where: str) -> Record:
    """DROP: `passage`, `question`, `answers_spans.spans`.

    The spans of a row of the training split are one answer ("3", or "Brady, Moss"). Of the validation split they are
    what several people answered; use this for training only.
    """
    spans = [span.strip() for span in texts_at(row, "answers_spans.spans", where) if span.strip()]
    question = text_at(row, "question", where).strip()
    questions = (Question(question, (", ".join(dict.fromkeys(spans)),)),) if spans else ()
    return Record(text_at(row, "passage", where), questions)


def read_narrativeqa(row: Row, where: str) -> Record:
    """NarrativeQA: `document.summary.text` (the summary, not the book), `question.text`, `answers[].text`."""
    answers = answers_in(row.get("answers"), where)
    question = text_at(row, "question.text", where).strip()
    return Record(text_at(row, "document.summary.text", where), (Question(question, answers),) if answers else ())


def read_pubmedqa(row: Row, where: str) -> Record:
    """PubMedQA: `context.contexts` (the abstract's parts, a line each), `question`, `long_answer`.

    The response is the long answer, not yes, no or maybe: the paper's has 40.7 words.
    """
    parts = [part.strip() for part in texts_at(row, "context.contexts", where) if part.strip()]
    context = checked_text("\n".join(parts), where, '"context.contexts"')
    question = Question(text_at(row, "question", where).strip(), (text_at(row, "long_answer", where).strip(),))
    return Record(context, (question,))


def read_quail(row: Row, where: str) -> Record:
    """Quail: `context`, `question`, `answers` (the options), `correct_answer_id`; the right option is the answer."""
    options, right = texts_at(row, "answers", where), row.get("correct_answer_id")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(options):
        found = right if isinstance(right, int) else kind(right)
        raise DataError(f'{where}: "correct_answer_id" is {found}; expected a number from 0 to {len(options) - 1}')
    answer = checked_text(options[right], where, '"answers"').strip()
    return Record(text_at(row, "context", where), (Question(text_at(row, "question", where).strip(), (answer,)),))


def read_ms_marco(row: Row, where: str) -> Record | None:
    """MS MARCO: `passages.passage_text`, `query`, `answers`; rows with no other than "No Answer Present." are left out.

    The context is every passage that was found, a blank line between them.
    """
    return _ms_marco(row, texts_at(row, "passages.passage_text", where), where)


def read_ms_marco_selected(row: Row, where: str) -> Record | None:
    """MS MARCO with those passages alone that hold the answer (`passages.is_selected`); none: the row is left out."""
    passages, selected = texts_at(row, "passages.passage_text", where), value_at(row, "passages.is_selected", where)
    if not isinstance(selected, list) or len(selected) != len(passages):
        raise DataError(f'{where}: "passages.is_selected" is {kind(selected)}; expected a list, a number each passage')
    return _ms_marco(row, [text for text, chosen in zip(passages, selected, strict=True) if chosen], where)


def _ms_marco(row: Row, passages: list[str], where: str) -> Record | None:
    question = text_at(row, "query", where).strip()
    given = dict.fromkeys(answer.strip() for answer in texts_at(row, "answers", where))
    answers = tuple(answer for answer in given if answer and answer != NO_ANSWER)
    passages = [passage.strip() for passage in passages if passage.strip()]
    if not answers or not passages:
        return None
    return Record("\n\n".join(passages), (Question(question, answers),))


def read_metaicl(row: Row, where: str) -> Record:
    """MetaICL: `task`, `input`, `output`; `options` is not read, since the demonstrations show what may be answered.

    The row's record is its demonstration ("Input: ...", "Output: ..." on a line each) with its question (the same up to
    "Output:"), and the task as the source.
    """
    task, given = text_at(row, "task", where), text_at(row, "input", where).strip()
    output = text_at(row, "output", where).strip()
    question = f"Input: {given}\nOutput:"
    return Record(f"{question} {output}", (Question(question, (output,)),), source=task)


def read_metaicl_train(row: Row, where: str) -> Record | None:
    """MetaICL as `read_metaicl`, without rows of other tasks than `METAICL_TRAIN_TASKS`.

    The set on the hub has its test tasks beside them, which training must not see.
    """
    task = text_at(row, "task", where).replace("-", "_")
    return read_metaicl(row, where) if task in METAICL_TRAIN_TASKS else None


def read_booksum(row: Row, where: str) -> Record | None:
    """BookSum: `chapter`, `summary_text`; the question is `BOOKSUM_INSTRUCTION`, which has the paper's seven words.

    Rows without a chapter or a summary are left out: the set is a CSV file, where an empty field has no value.
    """
    if is_blank(row, "chapter", where, null=True) or is_blank(row, "summary_text", where, null=True):
        return None
    summary = text_at(row, "summary_text", where).strip()
    return Record(text_at(row, "chapter", where), (Question(BOOKSUM_INSTRUCTION, (summary,)),))


def read_pwc(row: Row, where: str) -> Record | None:
    """PwC: `input`, `prompt`, `answer`; rows where a field is blank are left out, since a model wrote them."""
    if any(is_blank(row, field, where) for field in ("input", "prompt", "answer")):
        return None
    question = Question(text_at(row, "prompt", where).strip(), (text_at(row, "answer", where).strip(),))
    return Record(text_at(row, "input", where), (question,))
