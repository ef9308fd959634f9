"""What a configuration of this family builds: parameters, FLOPs, published figures; nothing is
trained or allocated.

Letters: L tokens of a stack, D d_model, F d_ff, I num_heads * head_dim.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from ml_collections import ConfigDict

from moe.models.architecture import Architecture
from moe.models.transformer import Transformer
from moe.routing.config import RoutingConfig, policy_name
from moe.start.tuned import is_adapter, tuned
from trainlib.model import weights
from trainlib.model.weights import Abstract


def params_by_part(abstract: Abstract) -> dict[str, int]:
    """Parameters of attention, dense feed-forward layers, experts, shared experts, routers, norms,
    tables and adapters.
    """
    parts = Counter()
    for name, spec in abstract.params.items():
        parts[_part(name)] += spec.size
    return dict(parts)


def _part(name: str) -> str:
    if is_adapter(name):
        return "adapters"
    for part, words in (
        ("tables", ("embedding.", "output.")),
        ("routers", ("experts.router",)),
        ("norms", ("norm.scale",)),
        ("shared experts", (".experts.shared.",)),
        ("experts", (".experts.",)),
        ("attention", ("attention.", ".bias.table")),
    ):
        if any(word in name for word in words):
            return part
    return "dense feed-forward"


def forward_flops(model: Architecture, encoder_length: int, decoder_length: int) -> float:
    """FLOPs of the matrix products of one sequence forward, multiply-add = 2, nothing recomputed.

    Experts count at their training capacity, attention logits over whole sequences. The papers' own
    figures follow from no single formula; this one gives 20.27T for ST-MoE-32B (printed: 20.2T).
    """
    lengths = {"encoder": encoder_length, "decoder": decoder_length}
    d, inner = model.d_model, model.num_heads * model.head_dim
    matrices = (3 if model.activation == "geglu" else 2) * d
    ffn, expert = matrices * model.d_ff, matrices * model.expert_width
    total = 0.0
    for stack in model.stacks:
        tokens = lengths[stack]
        blocks, sparse = getattr(model, model.stacks[stack]), len(model.sparse_blocks(stack))
        total += blocks * (4 * d * inner + 2 * tokens * inner) * tokens
        if stack == "decoder" and "encoder" in model.stacks:
            cross = 2 * d * inner * (tokens + encoder_length) + 2 * encoder_length * inner * tokens
            total += blocks * cross
        total += (blocks - sparse + len(model.extra_blocks(stack))) * ffn * tokens
        if model.routing is not None:
            copies = model.routing.capacity_factor  # of each token, as far as experts compute
            if model.routing.dropless or model.routing.capacity_per_choice:
                copies = model.routing.top_k * (1 if model.routing.dropless else copies)
            copies += model.shared_experts
            total += sparse * (expert * copies + d * model.routing.num_experts) * tokens
    last = lengths["decoder" if "decoder" in model.stacks else "encoder"]
    return 2 * (total + d * model.vocab_size * last)


def _idle(model: Architecture, experts: int) -> int:
    """Parameters of the experts that one token does not go to."""
    if model.routing is None:
        return 0
    return experts - experts * model.routing.top_k // model.routing.num_experts


def describe(config: ConfigDict) -> dict[str, Any]:
    """The facts of a configuration as plain data.

    Returns:
      name, family, task, params, active_params (used for one token), params_by_part,
      flops_per_example (forward pass of one sequence, multiply-add = 2), tokens_per_example (of the
      encoder, where there is one, as the papers count), experts, sparse_blocks (stack -> block
      numbers), encoder_length, decoder_length, data, published (those figures that are known).
    """
    model = tuned(config)
    abstract = weights.abstract(Transformer(model))
    lengths = config.data.encoder_length, config.data.decoder_length
    parts = params_by_part(abstract)
    return {
        "name": config.name,
        "family": config.family,
        "task": config.task,
        "params": abstract.param_count,
        "active_params": abstract.param_count - _idle(model, parts.get("experts", 0)),
        "params_by_part": parts,
        "flops_per_example": forward_flops(model, *lengths),
        "tokens_per_example": lengths["encoder" not in model.stacks],
        "experts": config.routing.num_experts,
        "sparse_blocks": {s: list(model.sparse_blocks(s)) for s in model.stacks},
        "encoder_length": lengths[0],
        "decoder_length": lengths[1],
        "data": config.data.source,
        "published": {key: value for key, value in config.published.items() if value},
    }


def routing(model: Architecture) -> str:
    """How tokens find their experts, as a phrase; names an evaluation unlike training."""
    config = model.routing
    if config is None:
        return "dense, no experts"
    words = f"{config.num_experts} experts, top-{config.top_k}"
    if config.router == "experts_choose":  # in a decoder they cannot
        words = f"{config.num_experts} experts, which choose their tokens in the encoder"
        return f"{words}, top-{config.top_k} in the decoder" if "decoder" in model.stacks else words
    words += "".join(f", {said}" for said in _choice(model, config))
    if config.batch_prioritized:
        words += ", by priority in the encoder"
    train, held_out = (policy_name(config, train=mode) for mode in (True, False))
    if config.top_k == 1:
        return words
    words += f", later choices: {train} in training, {held_out} in evaluation"
    if (train, held_out) == ("random", "all"):
        words += " (the paper's code draws there too: routing.second_policy_eval=random)"
    return words


def _choice(model: Architecture, config: RoutingConfig) -> list[str]:
    """What is unlike the top K of a softmax."""
    said = {
        f"by {config.scores}s": config.scores != "softmax",
        "with balance biases": config.balance_bias,
        f"in {config.groups_per_token} of {config.expert_groups} groups": config.expert_groups > 1,
        f"{model.shared_experts} shared beside them": model.shared_experts,
    }
    return [words for words, true in said.items() if true]


def row(facts: dict[str, Any]) -> list[str]:
    """Cells of the table of all configurations."""
    published = facts["published"]
    shown = [
        f"{text} {published[key]}"
        for key, text in (("neg_log_perplexity", "log perplexity"), ("score", "score"))
        if key in published
    ]
    return [
        facts["name"],
        f"{facts['task']}, {facts['data']}",
        f"{facts['params']:,}",
        f"{facts['flops_per_example'] / 1e9:,.2f} G/row",
        ", ".join(shown) or "-",
        published.get("source", "-"),
    ]
