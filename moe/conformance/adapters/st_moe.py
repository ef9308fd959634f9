"""The router of st-moe-pytorch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from moe.conformance.adapters import torch_answers
from moe.conformance.adapters.known import version
from moe.conformance.cases import Case
from moe.conformance.reference import Answer
from moe.conformance.verdict import CannotExpress

_ALL = 1e-9  # a threshold that every gate passes


class StMoe:
    """`st_moe_pytorch.MoE` with experts that answer with unit vectors. Its capacity factor is not
    multiplied by the number of choices; the adapter does that where a case asks for it.
    """

    declares = (
        "capacity by sequence",
        "at least four slots",
        "gates over their sum, which is top-k before softmax",
        "padding takes slots",
        "padding counts in the balance loss",
        "padding counts in the z-loss",
        "balance over a sequence",
        "balance of first choices",
    )

    def __init__(self):
        self.name = version("st-moe-pytorch")

    def route(self, case: Case) -> Answer:
        _check(case)
        tokens = torch_answers.leaf(case)
        if case.layers > 1:  # a model adds up what its layers return
            found = [self._one(case, x)[0] for x in tokens]
            return torch_answers.answer(
                case,
                tokens,
                balance=sum(out.balance_loss for out in found),
                z=sum(out.router_z_loss for out in found),
            )
        out, combine = self._one(case, tokens)
        taken = combine.detach() > 0
        choice = tokens.softmax(-1).topk(case.settings.top_k).indices  # as the router does
        slots = taken.long().argmax(-1).where(taken.any(-1), -1)
        return torch_answers.answer(
            case,
            tokens,
            combine=out.outputs,
            balance=out.balance_loss,
            z=out.router_z_loss,
            slots=slots,
            choice=choice,
        )

    def _one(self, case: Case, tokens: Any) -> tuple[Any, Any]:
        """What the layer returns, and its combine tensor [B, L, E, C]."""
        layer, seen = _layer(case), []
        layer.gate.register_forward_hook(lambda module, given, out: seen.append(out[1]))
        with _replayed(case):
            return layer(tokens), seen[0]


def _check(case: Case) -> None:
    settings = case.settings
    for missing, what in (
        (settings.top_k == 1, "two experts a token at least"),
        (settings.second_policy not in ("all", "random"), "all choices or random ones"),
        (settings.scores != "softmax", "softmax alone"),
        (settings.batch_prioritized, "left to right alone"),
        (settings.dispatch == "dropless", "always a capacity"),
        (settings.logit_clip > 0, "no clip of logits"),
    ):
        if missing:
            raise CannotExpress(what)


def _layer(case: Case) -> Any:
    import torch
    from st_moe_pytorch.st_moe_pytorch import MoE  # pyright: ignore[reportMissingImports]

    settings, experts = case.settings, case.settings.num_experts
    factor = settings.capacity_factor * (settings.top_k if settings.capacity_per_choice else 1)
    layer = MoE(
        experts,
        num_experts=experts,
        gating_top_n=settings.top_k,
        threshold_train=settings.second_threshold if settings.second_policy == "random" else _ALL,
        capacity_factor_train=factor,
        experts=torch.nn.ModuleList(torch_answers.unit(e, experts) for e in range(experts)),
    ).train()
    layer.gate.to_gates.weight = torch.nn.Parameter(torch.eye(experts))
    return layer


@contextlib.contextmanager
def _replayed(case: Case) -> Iterator[None]:
    """Gives the router the draws of the case in place of its own, which are [K, B, L]."""
    import torch

    draws = torch.zeros(case.settings.top_k, *case.mask.shape)
    draws[1:] = torch.tensor(case.draws).movedim(-1, 0)

    def uniform(self: Any, *bounds: float) -> Any:
        return draws

    with mock.patch.object(torch.Tensor, "uniform_", uniform):
        yield
