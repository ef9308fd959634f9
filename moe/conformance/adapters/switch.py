"""The router of Switch Transformers in Hugging Face transformers."""

from __future__ import annotations

from typing import Any

from moe.conformance.adapters import torch_answers
from moe.conformance.adapters.known import version
from moe.conformance.cases import Case
from moe.conformance.reference import Answer
from moe.conformance.settings import Settings
from moe.conformance.verdict import CannotExpress


class Switch:
    """`SwitchTransformersSparseMLP` with experts that answer with unit vectors, and the losses as
    `SwitchTransformersForConditionalGeneration` computes them.
    """

    declares = (
        "capacity by sequence",
        "padding takes slots",
        "balance over a sequence",
        "padding counts in the balance loss",
        "padding counts in the z-loss",
        "mean of the layers' z-losses",
    )

    def __init__(self):
        self.name = f"Switch of {version('transformers')}"

    def route(self, case: Case) -> Answer:
        _check(case.settings)
        tokens = torch_answers.leaf(case)
        several = tokens if case.layers > 1 else tokens[None]
        layer = _layer(case.settings.num_experts, case.settings.capacity(case.mask.shape[1]))
        recorded: list[Any] = []  # as `OutputRecorder` of the model does
        layer.router.register_forward_hook(lambda module, given, out: recorded.append(out[2]))
        combine = [layer(x) for x in several]
        balance, z = _losses(recorded)
        return torch_answers.answer(
            case, tokens, combine=combine[0] if case.layers == 1 else None, balance=balance, z=z
        )


def _check(settings: Settings) -> None:
    for missing, what in (
        (settings.top_k > 1, "one expert a token alone"),
        (settings.scores != "softmax", "softmax alone"),
        (settings.batch_prioritized, "left to right alone"),
        (settings.logit_clip > 0, "no clip of logits"),
    ):
        if missing:
            raise CannotExpress(what)


def _layer(experts: int, capacity: int) -> Any:
    import torch
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers import modeling_switch_transformers as peer

    config = SwitchTransformersConfig(
        d_model=experts,
        d_ff=1,
        num_experts=experts,
        expert_capacity=capacity,
        router_jitter_noise=0.0,
    )
    layer = peer.SwitchTransformersSparseMLP(config).train()
    layer.router.classifier.weight = torch.nn.Parameter(torch.eye(experts))
    for number in range(experts):
        layer.experts[f"expert_{number}"] = torch_answers.unit(number, experts)
    return layer


def _losses(layers: list[Any]) -> tuple[Any, Any]:
    """Balance loss and z-loss of what was recorded of all layers of a stack; None where the model
    stops, as releases do before the correction of huggingface/transformers#48293.
    """
    import torch
    from transformers.models.switch_transformers import modeling_switch_transformers as peer

    unpack = peer.SwitchTransformersForConditionalGeneration._unpack_router_logits
    try:
        logits, indices = unpack(None, tuple(layers))  # pyright: ignore[reportArgumentType]
    except (RuntimeError, ValueError):
        return None, None
    probabilities = torch.nn.Softmax(dim=-1)(logits)
    balance = peer.load_balancing_loss_func(probabilities, indices)
    return balance, peer.router_z_loss_func(logits)
