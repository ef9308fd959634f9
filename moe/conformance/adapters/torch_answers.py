"""What adapters of routers in torch share."""

from __future__ import annotations

from typing import Any

from moe.conformance.cases import Case
from moe.conformance.reference import Answer


def leaf(case: Case) -> Any:
    """The logits as a tensor that gradients are taken by. A router whose weights are the unit
    matrix makes them of tokens that are the logits themselves.
    """
    import torch

    return torch.tensor(case.logits, requires_grad=True)


def unit(number: int, width: int) -> Any:
    """An expert that answers every token with the unit vector of its number, so that a layer
    returns the weights with which it combines experts.
    """
    import torch

    class Unit(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.eye(width, dtype=x.dtype)[number].expand_as(x)

    return Unit()


def answer(
    case: Case,
    logits: Any,
    *,
    combine: Any = None,
    balance: Any = None,
    z: Any = None,
    slots: Any = None,
    choice: Any = None,
) -> Answer:
    """An answer with its gradients, of tensors that hang on `logits`.

    Args:
      case: the case.
      logits: from `leaf`.
      combine: [B, L, E].
      balance: scalar.
      z: scalar.
      slots: int [B, L, E], -1 where a token has none.
      choice: int [B, L, K].
    """
    import torch

    totals = {"balance": balance, "z": z}
    if combine is not None:
        weights = torch.tensor(case.cotangent, dtype=combine.dtype)
        # What is no number stays where it is.
        totals["combine"] = torch.where(torch.isfinite(combine), combine * weights, 0.0).sum()
    gradients = {}
    for name, total in totals.items():
        if total is None or case.layers > 1:
            continue
        found = None
        if total.requires_grad:
            (found,) = torch.autograd.grad(total, logits, retain_graph=True, allow_unused=True)
        gradients[name] = torch.zeros_like(logits) if found is None else found
    return Answer(
        None if combine is None else combine.detach().numpy(),
        None if slots is None else slots.numpy(),
        None if balance is None else float(balance.detach()),
        None if z is None else float(z.detach()),
        None if choice is None else choice.numpy(),
        {name: gradient.numpy() for name, gradient in gradients.items()},
    )
