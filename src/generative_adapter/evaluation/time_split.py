"""Where the time of training goes: forward and backward work of labelled parts, found in a profile.

`torch.profiler.record_function` labels name the parts in the forward pass. Autograd gives each operation's node a
sequence number, under which the profiler records both the operation and the node's run in the backward pass; so
backward work belongs to the part whose operation made the node. Leaves out: GPUs, where an operation runs on after it
was launched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch.autograd.profiler_util import FunctionEvent

_NODE = "autograd::engine::evaluate_function: "
_LEAF = _NODE + "torch::autograd::AccumulateGrad"
_MICROSECONDS = 1e-6


@dataclass(frozen=True)
class LabelledSeconds:
    """Seconds of each label: in the forward pass and in the backward pass, without what has a label of its own inside.

    Attributes:
        forward: label -> seconds.
        backward: label -> seconds.
    """

    forward: dict[str, float]
    backward: dict[str, float]


def labelled_seconds(events: Iterable[FunctionEvent], labels: Collection[str], leaves: str) -> LabelledSeconds:
    """What a profile says of labelled work.

    A label inside another one is taken out of the outer one. Forward work that is done again inside the backward pass,
    as with gradient checkpointing, is backward work of its label.

    Args:
        events: of a profile with CPU activities, `torch.profiler.profile.events()`.
        labels: names given to `record_function`.
        leaves: the label that gradients of parameters are added up for.
    """
    events = list(events)
    forward = dict.fromkeys(labels, 0.0)
    backward = dict.fromkeys(labels, 0.0)
    makers: dict[int, FunctionEvent] = {}  # sequence number -> the operation that made the node
    for event in events:
        number = event.sequence_nr
        if number < 0 or event.name.startswith(_NODE) or _node_around(event, itself=False) is not None:
            continue
        # Operations without a node of their own share the number of the next one that has: the last to start made it.
        if number not in makers or event.time_range.start >= makers[number].time_range.start:
            makers[number] = event
    label_of = {number: _label_around(event, labels) for number, event in makers.items()}
    for event in events:
        seconds = event.time_range.elapsed_us() * _MICROSECONDS
        node = _node_around(event)
        if event.name in forward:
            outer = None if event.cpu_parent is None else _label_around(event.cpu_parent, labels)
            owner = None if node is None else _label_of_node(node, label_of, leaves)
            if node is None:
                forward[event.name] += seconds
                if outer is not None:
                    forward[outer] -= seconds
            elif owner is None:
                backward[event.name] += seconds
                if outer is not None:
                    backward[outer] -= seconds
        elif node is event and _node_around(event, itself=False) is None:
            label = _label_of_node(event, label_of, leaves)
            if label is not None:
                backward[label] += seconds
    return LabelledSeconds(forward, backward)


def _label_of_node(node: FunctionEvent, label_of: dict[int, str | None], leaves: str) -> str | None:
    return leaves if node.name == _LEAF else label_of.get(node.sequence_nr)


def _label_around(event: FunctionEvent, labels: Collection[str]) -> str | None:
    """The innermost label that an event is or lies in."""
    place: FunctionEvent | None = event
    while place is not None:
        if place.name in labels:
            return place.name
        place = place.cpu_parent
    return None


def _node_around(event: FunctionEvent, itself: bool = True) -> FunctionEvent | None:
    """The run of a backward node that an event is or lies in."""
    place: FunctionEvent | None = event if itself else event.cpu_parent
    while place is not None:
        if place.name.startswith(_NODE):
            return place
        place = place.cpu_parent
    return None
