"""Chooses the learning rates of the fine-tuning baselines on training data, so that none of them is a straw man.

    python benchmarks/fine_tuning_rates.py sft --train-data TRAIN.json
    python benchmarks/fine_tuning_rates.py cpt --train-data TRAIN.json --data OTHER-TRAIN.jsonl --sft-rate full=5e-5
    python benchmarks/fine_tuning_rates.py k-shot --metaicl FOLDER --tasks A,B

`sft` tells the lowest validation loss of each rate; `cpt` the F1 of closed-book answers about documents of other
training data; `k-shot` the accuracy on demonstrations of other draws. No test question is read. One JSON line a trial.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from generative_adapter.base_model.loading import load_base_model
from generative_adapter.base_model.prompts import plain_ids
from generative_adapter.evaluation.tasks.document_qa import WORDINGS, DocumentQa, read_documents
from generative_adapter.evaluation.tasks.metaicl import WORDINGS as METAICL_WORDINGS
from generative_adapter.evaluation.tasks.metaicl import MetaIcl
from generative_adapter.evaluation.tasks.protocol import score
from generative_adapter.evaluation.training_data import document_training_data
from generative_adapter.methods.continual_pretraining import CPT, ContinualPretraining
from generative_adapter.methods.fine_tuning import SFT, SupervisedFineTuning, tuned_weights
from generative_adapter.methods.k_shot import K_SHOT, KShotFineTuning
from generative_adapter.methods.settings import MethodSettings

BARE = next(wording for wording in WORDINGS if wording.name == "question and answer")
RATES = {"lora": (1e-4, 3e-4, 1e-3), "full": (1e-5, 5e-5, 2e-4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=("sft", "cpt", "k-shot"))
    parser.add_argument("--train-data", type=Path, action="append", default=[])
    parser.add_argument("--data", type=Path, help="training documents that are not in --train-data")
    parser.add_argument("--metaicl", type=Path)
    parser.add_argument("--tasks", default="")
    parser.add_argument("--forms", default="lora,full")
    parser.add_argument("--rates", default="", help="instead of the usual ones, such as 1e-4,3e-4")
    parser.add_argument("--sft-rate", action="append", default=[], metavar="FORM=RATE")
    parser.add_argument("--max-pairs", type=int, default=1000)
    parser.add_argument("--max-epochs", type=int)
    parser.add_argument("--batch-size", type=int, default=16, help="pairs a step of supervised fine-tuning")
    parser.add_argument("--limit", type=int, default=60, help="questions")
    parser.add_argument("--max-contexts", type=int, default=6)
    options = parser.parse_args()
    base = load_base_model()

    def count_tokens(text: str) -> int:
        return len(plain_ids(base.tokenizer, text))

    for form in options.forms.split(","):
        rates = [float(rate) for rate in options.rates.split(",") if rate] or RATES[form]
        weights = tuned_weights(form, base, MethodSettings(BARE))
        if options.method == "k-shot":
            for rate in rates:
                started, right = time.perf_counter(), []
                settings = replace(K_SHOT, learning_rate=rate, max_epochs=options.max_epochs or K_SHOT.max_epochs)
                method = KShotFineTuning(weights, METAICL_WORDINGS[1], settings=settings)
                for task in options.tasks.split(","):
                    for sample in MetaIcl(options.metaicl, task).choice(1).samples():
                        right += judged(method, sample, METAICL_WORDINGS[1])
                tell(options.method, form, rate, sum(right) / len(right), len(right), started)
            continue
        training = document_training_data(options.train_data, count_tokens, num_shots=0, max_pairs=options.max_pairs)
        chosen = dict(text.split("=") for text in options.sft_rate)
        epochs = options.max_epochs or 2
        for rate in rates if options.method == "sft" else [float(chosen[form])]:
            started = time.perf_counter()
            settings = replace(SFT, learning_rate=rate, max_epochs=epochs, batch_size=options.batch_size)
            sft = SupervisedFineTuning(
                weights, training.pairs, BARE, validation=training.validation_pairs, settings=settings
            )
            fit = sft.trained()
            tell("sft", form, rate, list(fit.validation_losses), len(training.pairs), started)
        if options.method == "cpt":
            samples = list(
                DocumentQa(
                    read_documents(options.data), count_tokens, 512, options.limit, options.max_contexts
                ).samples()
            )
            for rate in rates:
                started, values = time.perf_counter(), []
                method = ContinualPretraining(weights, BARE, sft=sft, settings=replace(CPT, learning_rate=rate))
                for sample in samples:
                    values += judged(method, sample, BARE)
                tell("cpt", form, rate, sum(values) / len(values), len(values), started)


def judged(method, sample, wording) -> list[float]:
    state = method.take_in(sample.context)
    answers = method.answer(state, [item.query for item in sample.queries], wording, sample.max_new_tokens)
    return [judgement.values[sample.metrics[0]] for judgement in score(sample, answers)]


def tell(method: str, form: str, rate: float, result, number: int, started: float) -> None:
    seconds = round(time.perf_counter() - started, 1)
    line = {"method": method, "form": form, "rate": rate, "result": result, "number": number, "seconds": seconds}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
