"""What a record says of the routers, as plain data: everything that a report prints or draws.

Letters: N tokens of a stack, P sparse layers, E experts, K choices of a token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe.analysis import properties
from moe.analysis.record import Record, StackRecord
from moe.analysis.statistics import (
    Control,
    Explained,
    Property,
    Typical,
    conditional,
    entropy,
    exactly,
    explained,
    ranked,
    table,
    typical,
)
from moe.analysis.texts import Texts
from moe.text.vocabulary import Vocabulary

FEW = 30  # tokens of a class or language below which nothing is said of it
_LISTED = 10  # words and tokens of an expert
_ALL_VALUES = 64  # of a property, for which an exact rule is written out
_RANGE = (2.5, 97.5)  # per cent: a 95 % interval


@dataclasses.dataclass(frozen=True)
class Group:
    """How the tokens of one class, or of one language, are routed.

    Attributes:
      name: of the class.
      tokens: how many have a first choice.
      shares: float [E], of their first choices.
      entropy: of these shares in nats (ST-MoE, table 14).
      low: 95 % interval of it by a bootstrap over rows.
      high: its upper end.
      control: of as many tokens with the experts dealt out anew, mean.
      control_low: least of the control.
      control_high: largest of the control.
      dropped: share of the sent choices of these tokens that found no slot.
    """

    name: str
    tokens: int
    shares: np.ndarray
    entropy: float
    low: float
    high: float
    control: float
    control_low: float
    control_high: float
    dropped: float

    @property
    def specialised(self) -> bool:
        """Whether its experts are fewer than chance gives."""
        return self.high < self.control_low


@dataclasses.dataclass(frozen=True)
class Layer:
    """One sparse layer; counts are of the real tokens.

    Attributes:
      block: its number in the stack.
      load: float [E], share of the choices sent that each expert was sent.
      first: float [E], the same of first choices.
      dropped_choices: share of the choices sent that found no slot.
      dropped_tokens: share of the tokens that no expert took.
      second_rate: choices beyond the first that were sent, per token.
      entropy: mean entropy of the router's probabilities, in nats.
      dropped_by_tenth: float [10], dropped choices by tenths of the row.
      explained: what the first choices follow, best first.
      rule: property -> values of each expert, where the best property says the expert exactly.
      classes: of words.
      predicted: of the tokens that a decoder has to predict; else empty.
      labels: languages or sources, where there are several.
      typical_classes: of each expert.
      typical_words: of each expert.
      typical_tokens: of each expert.
      second: int [E, E], tokens by first choice and second choice, where choices have an order.
    """

    block: int
    load: np.ndarray
    first: np.ndarray
    dropped_choices: float
    dropped_tokens: float
    second_rate: float
    entropy: float
    dropped_by_tenth: np.ndarray
    explained: list[Explained]
    rule: dict[str, list[list[str]]]
    classes: list[Group]
    predicted: list[Group]
    labels: list[Group]
    typical_classes: list[list[Typical]]
    typical_words: list[list[Typical]]
    typical_tokens: list[list[Typical]]
    second: np.ndarray | None

    def share_of(self, name: str) -> float:
        """How much of the routing a property explains; 0 where it has nothing to explain."""
        return next((e.share or 0.0 for e in self.explained if e.name == name), 0.0)


@dataclasses.dataclass(frozen=True)
class Passage:
    """How first choices go together from one sparse layer to the next.

    Attributes:
      first: block of the earlier layer.
      then: block of the later one.
      counts: int [E, E], tokens by their expert in both.
      explained: how far the earlier expert says the later one.
    """

    first: int
    then: int
    counts: np.ndarray
    explained: Explained


@dataclasses.dataclass(frozen=True)
class StackFindings:
    """What is found of one stack.

    Attributes:
      tokens: N.
      experts: E.
      layers: of the sparse blocks.
      passages: between neighbours of them.
    """

    tokens: int
    experts: int
    layers: list[Layer]
    passages: list[Passage]

    @property
    def uniform(self) -> float:
        """Entropy of an even load, ln E."""
        return float(np.log(self.experts))


@dataclasses.dataclass(frozen=True)
class Findings:
    """All of an analysis.

    Attributes:
      facts: what was read.
      stacks: "encoder", "decoder" -> what is found of it, as far as it has experts.
      similarity: "STACK by router" and "STACK by weights" -> block -> cosines [E, E].
    """

    facts: Mapping[str, Any]
    stacks: Mapping[str, StackFindings]
    similarity: Mapping[str, Mapping[int, np.ndarray]]


def find(
    record: Record,
    vocabulary: Vocabulary,
    similarity: Mapping[str, Mapping[int, np.ndarray]] | None = None,
) -> Findings:
    """Analyses a record.

    Args:
      record: of a run.
      vocabulary: of the same run.
      similarity: see `moe.analysis.similarity`.
    """
    text = Texts(record, vocabulary)
    stacks = {
        name: _stack(stack, properties.of_stack(record, name, text, vocabulary))
        for name, stack in record.stacks.items()
        if stack.blocks
    }
    return Findings(record.facts, stacks, similarity or {})


def _stack(stack: StackRecord, props: list[Property]) -> StackFindings:
    real = stack.real
    control = Control(np.nonzero(real)[0])
    firsts = [stack.first(layer)[real] for layer in range(len(stack.blocks))]
    layers = [_layer(stack, layer, first, props, control) for layer, first in enumerate(firsts)]
    names = [str(expert) for expert in range(stack.experts)]
    passages = []
    for number in range(len(firsts) - 1):
        one, two = firsts[number : number + 2]
        block, then = stack.blocks[number : number + 2]
        before = Property(f"expert of layer {block}", np.where(one < stack.experts, one, -1), names)
        counts = table(before.codes, two, stack.experts, stack.experts)
        passages.append(
            Passage(block, then, counts, explained(before, two, stack.experts, control))
        )
    return StackFindings(int(real.sum()), stack.experts, layers, passages)


def _layer(
    stack: StackRecord, layer: int, first: np.ndarray, props: list[Property], control: Control
) -> Layer:
    real, experts = stack.real, stack.experts
    expert, placed = stack.expert[layer][real].astype(np.int64), stack.placed[layer][real]  # [N, K]
    sent = expert < experts
    by_name = {prop.name: prop for prop in props}
    lists = (properties.WORD, properties.TOKEN)
    rank = ranked(
        [explained(p, first, experts, control) for p in props if p.name != properties.WORD]
    )
    lost = (sent & ~placed).sum(axis=1)

    def groups(name: str) -> list[Group]:
        prop = by_name.get(name)
        return [] if prop is None else _groups(prop, first, experts, control, sent, lost)

    def of_experts(name: str) -> list[list[Typical]]:
        prop = by_name[name]
        counts = table(prop.codes, first, len(prop.names), experts)
        return typical(counts, prop.names, _LISTED if name in lists else len(prop.names))

    tenth = by_name[properties.TENTH].codes
    sent_by_tenth, lost_by_tenth = (
        np.bincount(tenth, weights=values, minlength=10) for values in (sent.sum(axis=1), lost)
    )
    return Layer(
        block=stack.blocks[layer],
        load=_shares(np.bincount(expert[sent], minlength=experts)),
        first=_shares(np.bincount(first[first < experts], minlength=experts)),
        dropped_choices=_ratio(lost.sum(), sent.sum()),
        dropped_tokens=_ratio((~placed.any(axis=1)).sum(), len(placed)),
        second_rate=_ratio(sent.sum() - sent.any(axis=1).sum(), len(sent)),
        entropy=float(stack.entropy[layer][real].mean(dtype=np.float64)),
        dropped_by_tenth=lost_by_tenth / np.maximum(sent_by_tenth, 1),
        explained=rank,
        rule=_rule(rank, by_name, first, experts),
        classes=groups(properties.CLASS),
        predicted=groups(properties.PREDICTED),
        labels=groups(properties.LABEL),
        typical_classes=of_experts(properties.CLASS),
        typical_words=of_experts(properties.WORD),
        typical_tokens=of_experts(properties.TOKEN),
        second=_second(expert, experts) if stack.ordered else None,
    )


def _rule(
    rank: list[Explained], by_name: Mapping[str, Property], first: np.ndarray, experts: int
) -> dict[str, list[list[str]]]:
    if not rank or (rank[0].share or 0.0) < 0.9995 or rank[0].values > _ALL_VALUES:
        return {}
    rule = exactly(by_name[rank[0].name], first, experts)
    return {rank[0].name: rule} if rule else {}


def _groups(
    prop: Property,
    first: np.ndarray,
    experts: int,
    control: Control,
    sent: np.ndarray,
    lost: np.ndarray,
) -> list[Group]:
    counts = table(prop.codes, first, len(prop.names), experts)
    drawn = entropy(control.drawn(prop, first, experts))  # [DRAWS, V]
    chance = np.stack([entropy(c) for c in control.tables(prop, first, experts)])  # [SHUFFLES, V]
    low, high = np.percentile(drawn, _RANGE, axis=0)
    found = []
    for value, name in enumerate(prop.names):
        size = int(counts[value].sum())
        if size < FEW:
            continue
        mine = prop.codes == value
        found.append(
            Group(
                name=name,
                tokens=size,
                shares=counts[value] / size,
                entropy=float(entropy(counts[value])),
                low=float(low[value]),
                high=float(high[value]),
                control=float(chance[:, value].mean()),
                control_low=float(chance[:, value].min()),
                control_high=float(chance[:, value].max()),
                dropped=_ratio(lost[mine].sum(), sent[mine].sum()),
            )
        )
    return sorted(found, key=lambda group: group.entropy - group.control)


def _second(expert: np.ndarray, experts: int) -> np.ndarray | None:
    if expert.shape[1] < 2:
        return None
    codes = np.where(expert[:, 0] < experts, expert[:, 0], -1)
    return table(codes, expert[:, 1], experts, experts)


def divergence(groups: list[Group]) -> float:
    """Jensen-Shannon divergence of the shares of groups over ln of their number, weighted equally:
    0 where all have the same experts, 1 where none shares one.
    """
    if len(groups) < 2:
        return 0.0
    shares = np.stack([group.shares for group in groups])
    mean = conditional(shares)
    return float((entropy(shares.mean(axis=0)) - mean) / np.log(len(groups)))


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / max(int(counts.sum()), 1)


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / max(float(whole), 1.0)


def as_data(value: Any) -> Any:
    """Findings as JSON takes them."""
    if dataclasses.is_dataclass(value):
        return {f.name: as_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return [as_data(entry) for entry in value.tolist()]
    if isinstance(value, Mapping):
        return {str(key): as_data(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_data(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value
