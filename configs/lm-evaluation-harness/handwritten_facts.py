"""What the task files beside this one call: one document a question, and how answers are judged."""

from __future__ import annotations

from typing import Any

from generative_adapter.evaluation.metrics import exact_match, token_f1


def one_question_each(dataset: Any) -> Any:
    """The data set with a row a question: context, question, answers."""

    def flatten(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = zip(batch["context"], batch["qa"], strict=True)
        rows = [(context, asked) for context, several in texts for asked in several]
        return {
            "context": [context for context, _ in rows],
            "question": [asked["question"] for _, asked in rows],
            "answers": [asked["answers"] for _, asked in rows],
        }

    return dataset.map(flatten, batched=True, remove_columns=dataset.column_names)


def match_and_f1(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Exact match and F1 of an answer as SQuAD has them, the best over the references."""
    return {
        "exact_match": exact_match(results[0], document["answers"]),
        "f1": token_f1(results[0], document["answers"]),
    }


def likelihood(document: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Log-likelihood of the first reference, and whether it is the likeliest answer token by token."""
    log_likelihood, is_greedy = results[0]
    return {"log_likelihood": log_likelihood, "acc": float(is_greedy)}
