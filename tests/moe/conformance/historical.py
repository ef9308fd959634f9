"""Bugs that were shipped, written again in NumPy as adapters: each as the code of its issue did it.

They compute routing and losses on their own, so that what is found in them is found in code and not
in a change of the reference.
"""

from __future__ import annotations

import numpy as np

from moe.conformance.cases import Case
from moe.conformance.reference import Answer
from moe.conformance.verdict import CannotExpress


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_sum_exp(x):
    return np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1)) + x.max(-1)


def one_hot(index, experts):
    return (index[..., None] == np.arange(experts)).astype(float)


def switch_balance(probabilities, index):
    """Of Switch in transformers: a mean over tokens, then over sequences and experts."""
    experts = probabilities.shape[-1]
    share = one_hot(index, experts).mean(-2)
    return float(np.mean(share * probabilities.mean(-2)) * experts**2)


class Switch:
    """Switch of transformers 4 with its capacity by sequence, as it should have been."""

    declares = ()

    def __init__(self, name="Switch"):
        self.name = name

    def route(self, case: Case) -> Answer:
        if case.settings.top_k > 1 or case.settings.scores != "softmax":
            raise CannotExpress("one expert a token alone")
        layers = case.logits.astype(float)
        layers = layers if case.layers > 1 else layers[None]
        balance, z = self.losses(layers)
        combine = self.layer(layers[0], case) if case.layers == 1 else None
        return Answer(combine=combine, balance=balance, z=z)

    def layer(self, x, case):
        return self.gates(x, case)

    def gates(self, x, case):
        p = softmax(x)
        kept = self.kept(one_hot(p.argmax(-1), x.shape[-1]), self.capacity(case))
        return kept * p.max(-1, keepdims=True)

    def capacity(self, case):
        return case.settings.capacity(case.mask.shape[1])

    def kept(self, hits, capacity):
        return hits * (np.cumsum(hits, axis=-2) <= capacity)

    def losses(self, layers):
        balance = sum(switch_balance(softmax(x), x.argmax(-1)) for x in layers)
        return balance, sum(float(np.mean(log_sum_exp(x) ** 2)) for x in layers)


class CapacityIgnored(Switch):
    """huggingface/transformers#48293: `torch.max(.., keepdim=True)` left an axis of one, over which
    the positions were counted; and the recorded "logits" of the z-loss were that maximum.
    """

    def kept(self, hits, capacity):
        hits = hits[..., None, :]  # [B, L, 1, E]
        return (hits * (np.cumsum(hits, axis=-2) <= capacity))[..., 0, :]

    def losses(self, layers):
        recorded = [softmax(x).max(-1, keepdims=True) for x in layers]
        balance, _ = super().losses(layers)
        return balance, sum(float(np.mean(log_sum_exp(x) ** 2)) for x in recorded)


class DroppedKeepTheirInput(Switch):
    """huggingface/transformers#37017: outputs began as a copy of the inputs, and all of them were
    multiplied by the probability.
    """

    def layer(self, x, case):
        p = softmax(x)
        kept = self.kept(one_hot(p.argmax(-1), x.shape[-1]), self.capacity(case))
        out = x.copy()
        for expert in range(x.shape[-1]):
            out[kept[..., expert] > 0] = np.eye(x.shape[-1])[expert]
        return p.max(-1, keepdims=True) * out


class LayersPooled(Switch):
    """huggingface/transformers#29503: the logits of all layers were joined along the tokens."""

    def losses(self, layers):
        joined = np.concatenate(layers, axis=1)
        balance = switch_balance(softmax(joined), joined.argmax(-1))
        return balance, float(np.mean(log_sum_exp(joined) ** 2))


class TopK:
    """A router without capacity whose balance loss counts all choices."""

    declares = ("no capacity",)

    def __init__(self, name="top-k"):
        self.name = name

    def route(self, case: Case) -> Answer:
        settings = case.settings
        if case.layers > 1 or settings.second_policy != "all" or not settings.normalize_gates:
            raise CannotExpress("one layer, all choices, normalised gates")
        x = case.logits.astype(float)
        scores = self.scores(x, settings.scores)
        chosen = np.argsort(-x, axis=-1, kind="stable")[..., : settings.top_k]
        hits = one_hot(chosen, x.shape[-1]).sum(-2)
        combine = hits * scores
        if settings.top_k > 1:
            combine = combine / (combine.sum(-1, keepdims=True) + 1e-9)
        return Answer(combine=combine, balance=self.balance(x, hits, case))

    def scores(self, x, kind):
        return softmax(x) if kind == "softmax" else 1 / (1 + np.exp(-x))

    def shares(self, x, kind):
        scores = self.scores(x, kind)
        return scores / scores.sum(-1, keepdims=True)

    def counted(self, hits, case):
        return hits

    def balance(self, x, hits, case):
        shares = self.shares(x, case.settings.scores)[case.mask]
        counted = self.counted(hits, case)[case.mask]
        return float(x.shape[-1] * counted.mean(0) @ shares.mean(0))


class SoftmaxTwice(TopK):
    """huggingface/transformers#45120: what the router called logits were probabilities, and the
    loss took their softmax.
    """

    def shares(self, x, kind):
        return softmax(softmax(x))


class SmallSigmoids(TopK):
    """NVIDIA/Megatron-LM#1545: sigmoids below the epsilon cost nothing."""

    def shares(self, x, kind):
        scores = self.scores(x, kind)
        return scores / (scores.sum(-1, keepdims=True) + 1e-20)


class PaddedMap(TopK):
    """NVIDIA/Megatron-LM#1617: experts were filled up to their capacity with any tokens before the
    tokens of each were counted.
    """

    declares = ("no capacity",)

    def counted(self, hits, case):
        full = np.zeros(hits.shape)
        for sequence in range(len(full)):
            # [L, E]: the C likeliest tokens of each expert, whether or not they chose it.
            order = np.argsort(-case.logits[sequence], axis=0)[: case.capacity]
            np.put_along_axis(full[sequence], order, 1.0, axis=0)
        return full
