"""The router of Mixtral in Hugging Face transformers."""

from __future__ import annotations

from typing import Any

from moe.conformance.adapters import torch_answers
from moe.conformance.adapters.known import version
from moe.conformance.cases import Case
from moe.conformance.reference import Answer
from moe.conformance.settings import Settings
from moe.conformance.verdict import CannotExpress


class Mixtral:
    """`MixtralTopKRouter` and `load_balancing_loss_func`, which gets the mask of padding as the
    model gives it. There is no z-loss.
    """

    declares = (
        "no capacity",
        "gates over their sum, which is top-k before softmax",
        "top-k before softmax makes a single gate 1",
        "balance over the batch",
        "balance of all choices",
    )

    def __init__(self):
        self.name = f"Mixtral of {version('transformers')}"

    def route(self, case: Case) -> Answer:
        import torch
        from transformers.models.mixtral import modeling_mixtral as peer

        settings = case.settings
        _check(settings)
        tokens = torch_answers.leaf(case)
        router = _router(settings)
        layers = [router(x) for x in (tokens if case.layers > 1 else tokens[None])]
        balance = peer.load_balancing_loss_func(
            tuple(logits for logits, _, _ in layers),
            settings.num_experts,
            settings.top_k,
            torch.tensor(case.mask) if not case.mask.all() else None,
        )
        if case.layers > 1:
            return torch_answers.answer(case, tokens, balance=balance)
        _, gates, experts = layers[0]
        flat = torch.zeros(gates.shape[0], settings.num_experts)
        combine = flat.scatter_add(1, experts, gates).reshape(case.logits.shape)
        choice = experts.reshape(*case.mask.shape, settings.top_k)
        return torch_answers.answer(case, tokens, combine=combine, balance=balance, choice=choice)


def _check(settings: Settings) -> None:
    for missing, what in (
        (settings.second_policy != "all", "every choice is sent"),
        (settings.scores != "softmax", "softmax alone"),
        (settings.batch_prioritized, "no capacity, and so no order"),
        (settings.logit_clip > 0, "no clip of logits"),
    ):
        if missing:
            raise CannotExpress(what)


def _router(settings: Settings) -> Any:
    import torch
    from transformers import MixtralConfig
    from transformers.models.mixtral import modeling_mixtral as peer

    config = MixtralConfig(
        hidden_size=settings.num_experts,
        num_local_experts=settings.num_experts,
        num_experts_per_tok=settings.top_k,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    router = peer.MixtralTopKRouter(config)
    router.weight = torch.nn.Parameter(torch.eye(settings.num_experts))
    return router
