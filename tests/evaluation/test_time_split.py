"""Attribution of time: parts that sleep for a known time in their forward or their backward."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.checkpoint import checkpoint

from generative_adapter.evaluation.time_split import LabelledSeconds, labelled_seconds

LABELS = ("outer", "inner")


class Slow(torch.autograd.Function):
    """The identity that takes its time."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, forward_seconds: float, backward_seconds: float) -> Tensor:
        ctx.seconds = backward_seconds
        time.sleep(forward_seconds)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(ctx.seconds)
        return gradients[0], None, None


def slow(values: Tensor, forward_seconds: float, backward_seconds: float) -> Tensor:
    return Slow.apply(values, forward_seconds, backward_seconds)  # type: ignore[return-value]


def split_of(run: Callable[[Tensor], Tensor]) -> LabelledSeconds:
    """The split of one forward and backward pass, the shortest times of four: other work can only add to them."""
    weight = torch.randn(5, 5, requires_grad=True)
    run(weight).sum().backward()  # loads what torch loads when it is first used
    splits = []
    for _ in range(4):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            run(weight).sum().backward()
        splits.append(labelled_seconds(profiled.events() or [], LABELS, "outer"))
    return LabelledSeconds(
        {label: min(split.forward[label] for split in splits) for label in LABELS},
        {label: min(split.backward[label] for split in splits) for label in LABELS},
    )


def seconds(outer: float, inner: float) -> Any:
    """The times slept by each label, and little more; every single sleep below is longer than the tolerance."""
    return pytest.approx({"outer": outer, "inner": inner}, abs=0.03)


def test_every_part_gets_its_own_forward_and_backward() -> None:
    def run(weight: Tensor) -> Tensor:
        hidden = slow(weight @ weight, 0.1, 0.2)  # of nobody
        with record_function("outer"):
            hidden = slow(hidden.mT @ hidden, 0.04, 0.05)
            with record_function("inner"):
                hidden = slow(hidden.sin(), 0.06, 0.04)
            hidden = slow(hidden, 0.04, 0.06)
        return slow(hidden, 0.1, 0.2)

    split = split_of(run)
    assert split.forward == seconds(0.08, 0.06)
    assert split.backward == seconds(0.11, 0.04)


def test_an_operation_without_a_node_does_not_claim_the_next_one() -> None:
    """The last operation in the label makes no node; the unlabelled one after it has the same number in the profile."""

    def run(weight: Tensor) -> Tensor:
        with record_function("inner"):
            torch.ones(3).sin()
        return slow(weight, 0.0, 0.1)

    assert split_of(run).backward == seconds(0, 0)


def test_work_without_gradients_is_forward_only() -> None:
    def run(weight: Tensor) -> Tensor:
        with torch.no_grad(), record_function("inner"):
            slow(weight, 0.05, 0.0)
        return weight.sin()

    split = split_of(run)
    assert split.forward == seconds(0, 0.05)
    assert split.backward == seconds(0, 0)


def test_what_a_checkpoint_computes_again_is_backward_work() -> None:
    def block(values: Tensor) -> Tensor:
        with record_function("inner"):
            return slow(values.sin(), 0.05, 0.04).cos()

    def run(weight: Tensor) -> Tensor:
        return checkpoint(block, weight, use_reentrant=False)  # type: ignore[return-value]

    split = split_of(run)
    assert split.forward == seconds(0, 0.05)
    assert split.backward == seconds(0, 0.05 + 0.04)
