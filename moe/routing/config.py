"""Options of the router, and what follows from them alone: capacity, group size, policy.

Letters: E experts, K choices of a token, S tokens of a group, C capacity (slots of one expert
for one group).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

from moe.routing.policies import POLICIES, Policy
from trainlib import extension
from trainlib.errors import ConfigError, shown
from trainlib.keys import check_fields, choice, number, whole

ROUTERS = ("tokens_choose", "experts_choose")
DISPATCHES = ("index", "dropless", "grouped")
SCORES = ("softmax", "sigmoid")
GROUP_SCORES = ("top2", "best")
BALANCE_OVER = ("group", "sequence", "batch")

Factor = Annotated[float, number(1e-6, 1e6)]


@dataclasses.dataclass(frozen=True)
class RoutingConfig:
    """How tokens are routed; the defaults are those of ST-MoE (arXiv 2202.08906, appendix C).

    Example:
      >>> moe.RoutingConfig(num_experts=8)  # top-2, a random second choice, capacity 1.25
      >>> moe.RoutingConfig(128, top_k=1)  # Switch Transformer
      >>> moe.RoutingConfig(8, dispatch="dropless", second_policy="all")  # nothing is dropped

    Attributes:
      num_experts: E.
      top_k: K, experts a token may be sent to. With 1 the gate is the probability itself (Switch).
      router: "tokens_choose", or "experts_choose" (arXiv 2202.09368): each expert takes its C
        likeliest tokens. That looks at later tokens, so it is refused in a causal stack.
      scores: what the router makes of its logits: "softmax", or "sigmoid" of each on its own
        (DeepSeek-V3, arXiv 2412.19437). Gates are scores; where probabilities are meant, in the
        balance loss and the entropy, sigmoids are divided by their sum over all experts.
      gate_scale: all gates are multiplied by it (`routed_scaling_factor` of DeepSeek-V3, 2.5).
      balance_bias: each expert has a bias, which is added to its score where a token chooses its
        experts and not in its gate. Every training step moves it by `bias_update_rate`: up where
        an expert was sent less than the mean of all, down where more (balancing without an
        auxiliary loss, arXiv 2408.15664). It is no weight but state, as running statistics are,
        and stays as it is in evaluation.
      bias_update_rate: see `balance_bias`; 0 leaves the bias as it is.
      expert_groups: experts lie in so many groups of neighbours, and a token takes its experts from
        the `groups_per_token` groups of the best score (DeepSeek-V2, arXiv 2405.04434). 1: from
        all.
      groups_per_token: see `expert_groups`.
      expert_group_score: the score of a group: "top2", the sum of its two best scores, with their
        biases (DeepSeek-V3), or "best" (DeepSeek-V2).
      capacity_factor: in training C = capacity_factor * S / E.
      capacity_factor_eval: in evaluation C = capacity_factor_eval * S / E.
      capacity_per_choice: multiply C by K too (V-MoE, MaxText); the paper's code does not.
      capacity_rounding: "floor" (Mesh TensorFlow) or "round" (flaxformer).
      min_capacity: least C. At tiny sizes 4 hides drops.
      group_size: S in tokens; it has to divide the tokens of a device.
      group_sequences: S as a number of whole sequences (the paper's groups are 4 sequences); it
        has to divide the sequences of a device. With both 0, S is the largest divisor of the
        tokens of a device up to `max_group_size`, and results depend on the number of devices.
      max_group_size: see `group_sequences`.
      normalize_gates: divide the gates of the K choices by their sum; False: raw probabilities
        (flaxformer).
      second_policy: in training, when a choice beyond the first is sent: "all", "none", "threshold"
        (normalised gate > second_threshold), "random" (with probability gate / second_threshold)
        or "if_dropped" (when all choices before it found no slot: no token left behind, arXiv
        2101.03961, appendix B; its gate is the probability itself); or MODULE:NAME of a
        `moe.routing.policies.Policy` of your own.
      second_policy_eval: the same in evaluation. The paper's code stays random; "all" loses
        nothing to chance and is a deviation, which a run says when it starts. Draws of "random"
        are the same in every evaluation, and depend on the position in the batch.
      second_threshold: see `second_policy`.
      batch_prioritized: slots fill by descending first-choice probability (arXiv 2106.05974) and
        not from left to right; refused in a causal stack.
      sample_temperature: in training, draw the experts from softmax(logits / sample_temperature)
        in place of taking the best; 0: off.
      jitter: router inputs are multiplied by U(1 - jitter, 1 + jitter) in training.
      router_dropout: dropout of router inputs in training.
      logit_clip: router logits are clipped to +-logit_clip; 0: off (the paper argues against it).
      router_dtype: "float32", or "bfloat16" to see why the paper does not use it.
      balance_choices: "first" counts first choices in the balance loss (paper), "all" all K
        (flaxformer; uniform routing then costs K).
      balance_over: the tokens of one balance loss: those of a "group" (paper), of a "sequence"
        (DeepSeek-V3; a row of the batch) or of the whole "batch" on all devices (arXiv 2501.11873;
        of one microbatch, where there are several). The loss is the mean over them.
      balance_loss_weight: coefficient of the balance loss.
      z_loss_weight: coefficient of the router z-loss.
      later_balance_weight: weight, beside the first choice's balance loss, of one for each later
        choice, over the experts that the choices before it left (the second-place loss of Mesh
        TensorFlow, there 0.5); 0: off. The paper found it of little use (appendix J).
      entropy_loss_weight: coefficient of a loss of ln E less the entropy of the router
        probabilities, which spreads them; 0: off. As noise of pre-training it did not help the
        paper's fine-tuning (appendix J).
      whole_expert_dropout: in training, the share of experts whose outputs are dropped, drawn anew
        for each layer and step; those of the others are divided by what is left. It did not help
        either (appendix J); `model.expert_dropout` drops hidden units in its place.
      loss_reduction: "sum" (paper) or "mean" (T5X) of the losses of all sparse layers.
      dispatch: "index" (capacity, gathers), "dropless" (no capacity, any backend) or "grouped"
        (no capacity, grouped-matmul kernels of TPU or GPU).
      dropless_room: without capacity and over several devices, the rows that a device takes from
        others at once, as a multiple of what it gets when all experts are equally busy. More come
        in further rounds, which take time and drop nothing.
      exchange_chunks: with dispatch "index" over several devices, the pieces in which tokens go to
        their experts, so that one piece is on its way while another is computed; the result is the
        same. They are parts of the groups of a device or, of one group, of the slots of an expert.
        With 0, a TPU whose experts lie over rows alone gets as near to 4 as divides, and everything
        else 1.
      partitioner: "shard_map", or "automatic": the compiler partitions, led by constraints. The
        same results and, with dispatch "index", the same collectives.

    Raises:
      ConfigError: a value that cannot work.
    """

    num_experts: Annotated[int, whole(1, 2**20)]
    top_k: Annotated[int, whole(1)] = 2
    router: Annotated[str, choice(*ROUTERS)] = "tokens_choose"
    scores: Annotated[str, choice(*SCORES)] = "softmax"
    gate_scale: Annotated[float, number(above=0)] = 1.0
    balance_bias: bool = False
    bias_update_rate: Annotated[float, number(0)] = 0.001
    expert_groups: Annotated[int, whole(1)] = 1
    groups_per_token: Annotated[int, whole(1)] = 1
    expert_group_score: Annotated[str, choice(*GROUP_SCORES)] = "top2"
    capacity_factor: Factor = 1.25
    capacity_factor_eval: Factor = 2.0
    capacity_per_choice: bool = False
    capacity_rounding: Annotated[str, choice("floor", "round")] = "floor"
    min_capacity: Annotated[int, whole(0)] = 4
    group_size: Annotated[int, whole(1, also={0: "group_sequences"})] = 0
    group_sequences: Annotated[int, whole(1, also={0: "max_group_size"})] = 0
    max_group_size: Annotated[int, whole(1)] = 4096
    normalize_gates: bool = True
    second_policy: Annotated[str, extension.named(*POLICIES)] = "random"
    second_policy_eval: Annotated[str, extension.named(*POLICIES)] = "all"
    second_threshold: Annotated[float, number(above=0)] = 0.2
    batch_prioritized: bool = False
    sample_temperature: Annotated[float, number(above=0, also={0: "off"})] = 0.0
    jitter: Annotated[float, number(0, 1)] = 0.0
    router_dropout: Annotated[float, number(0, 0.999)] = 0.0
    logit_clip: Annotated[float, number(above=0, also={0: "off"})] = 0.0
    router_dtype: Annotated[str, choice("float32", "bfloat16")] = "float32"
    balance_choices: Annotated[str, choice("first", "all")] = "first"
    balance_over: Annotated[str, choice(*BALANCE_OVER)] = "group"
    balance_loss_weight: Annotated[float, number(0)] = 0.01
    z_loss_weight: Annotated[float, number(0)] = 1e-3
    later_balance_weight: Annotated[float, number(0)] = 0.0
    entropy_loss_weight: Annotated[float, number(0)] = 0.0
    whole_expert_dropout: Annotated[float, number(0, below=1)] = 0.0
    loss_reduction: Annotated[str, choice("sum", "mean")] = "sum"
    dispatch: Annotated[str, choice(*DISPATCHES)] = "index"
    dropless_room: Annotated[float, number(1)] = 1.5
    exchange_chunks: Annotated[int, whole(1, also={0: "automatic"})] = 0
    partitioner: Annotated[str, choice("shard_map", "automatic")] = "shard_map"

    def __post_init__(self):
        check_fields(self, "routing")
        if self.top_k > self.num_experts:
            raise ConfigError(
                f"routing.top_k={self.top_k} is more than routing.num_experts={self.num_experts}: "
                f"a token can be sent to at most {self.num_experts} different experts."
            )
        if self.group_size and self.group_sequences:
            raise ConfigError(
                f"routing.group_size={self.group_size} and routing.group_sequences="
                f"{self.group_sequences} both set the size of a group. Leave one of them at 0."
            )
        if self.partitioner == "automatic" and self.dispatch != "index":
            raise ConfigError(
                f"routing.dispatch={self.dispatch!r} sorts the tokens of one device, which needs "
                "routing.partitioner='shard_map'. Use that, or routing.dispatch='index'."
            )
        if self.exchange_chunks > 1 and (self.partitioner == "automatic" or self.dropless):
            raise ConfigError(
                f"routing.exchange_chunks={self.exchange_chunks} cuts what "
                "routing.partitioner='shard_map' exchanges with routing.dispatch='index'. Use "
                "these, or leave it at 0."
            )
        if self.router == "experts_choose" and self.dispatch != "index":
            raise ConfigError(
                f"routing.router='experts_choose' fills every expert to its capacity, which "
                f"routing.dispatch={self.dispatch!r} does not have. Use routing.dispatch='index'."
            )
        self._check_groups()
        self._check_choice()

    def _check_groups(self) -> None:
        """Refuses groups of experts that do not divide, or that hold too few for a token."""
        groups, experts = self.expert_groups, self.num_experts
        if experts % groups:
            near = [n for n in range(1, experts + 1) if not experts % n]
            fits = min(near, key=lambda n: abs(n - groups))
            raise ConfigError(
                f"routing.expert_groups={groups} does not divide routing.num_experts={experts}. "
                f"Nearest: {fits}."
            )
        if self.groups_per_token > groups:
            raise ConfigError(
                f"routing.groups_per_token={self.groups_per_token} is more than the "
                f"routing.expert_groups={groups} that there are. Use at most {groups}."
            )
        held = self.groups_per_token * (experts // groups)
        if self.top_k > held:
            each = experts // groups
            raise ConfigError(
                f"routing.top_k={self.top_k} is more than the {held} experts of "
                f"{self.groups_per_token} of {groups} groups (routing.groups_per_token, "
                f"routing.expert_groups). Use groups_per_token={-(-self.top_k // each)} or more."
            )

    def _check_choice(self) -> None:
        """Refuses what would change how tokens choose where something else chooses."""
        for active, option, off in (
            (self.balance_bias, "balance_bias=True", "balance_bias=False"),
            (self.expert_groups > 1, f"expert_groups={self.expert_groups}", "expert_groups=1"),
        ):
            if not active:
                continue
            if self.router == "experts_choose":
                raise ConfigError(
                    f"routing.{option} is about the experts that a token chooses, and with "
                    "routing.router='experts_choose' it chooses none: every expert has the same "
                    f"load. Use routing.{off}, or router='tokens_choose'."
                )
            if self.sample_temperature:
                raise ConfigError(
                    f"routing.sample_temperature={self.sample_temperature} draws the experts of a "
                    f"token from the softmax of all logits, in which routing.{option} has no "
                    f"place. Use routing.sample_temperature=0, or routing.{off}."
                )

        if self.later_balance_weight and (self.top_k == 1 or self.router == "experts_choose"):
            raise ConfigError(
                f"routing.later_balance_weight={self.later_balance_weight} balances the choices of "
                f"a token beyond its first, and with routing.top_k={self.top_k} and routing.router="
                f"{self.router!r} there are none. Use routing.top_k=2 and 'tokens_choose', or 0."
            )

    @property
    def dropless(self) -> bool:
        """Whether nothing is dropped for want of capacity."""
        return self.dispatch != "index"

    def check_causal(self) -> None:
        """Raises ConfigError when the options would show a decoder its future."""
        for leaks, option in (
            (self.batch_prioritized, "batch_prioritized=True"),
            (self.router == "experts_choose", "router='experts_choose'"),
        ):
            if leaks:
                raise ConfigError(
                    f"routing.{option} ranks tokens against later ones, so a causal stack would "
                    "see its future (ST-MoE, appendix D). Use it in encoders only; in a decoder "
                    "set batch_prioritized=False and router='tokens_choose'."
                )


def check_routing(what: str, routing: object) -> None:
    """Raises ConfigError where `what` was given something else in place of a `RoutingConfig`."""
    if not isinstance(routing, RoutingConfig):
        raise ConfigError(
            f"{what} takes a moe.RoutingConfig, such as moe.RoutingConfig(num_experts=8), and was "
            f"given {shown(repr(routing), 60)}. A mapping becomes one by "
            "moe.RoutingConfig(**mapping)."
        )


def capacity(config: RoutingConfig, group_size: int, *, train: bool) -> int:
    """C, slots of one expert for one group of `group_size` tokens.

    Raises:
      ConfigError: the result is below 1, so that every expert would drop everything.
    """
    factor = config.capacity_factor if train else config.capacity_factor_eval
    choices = config.top_k if config.capacity_per_choice else 1
    # The small term keeps 0.7 * 30 / 3 = 6.999... at 7.
    exact = factor * choices * group_size / config.num_experts
    slots = math.floor(exact + 1e-9) if config.capacity_rounding == "floor" else round(exact)
    slots = max(min(group_size, slots), config.min_capacity)
    if slots < 1:
        key = "capacity_factor" if train else "capacity_factor_eval"
        raise ConfigError(
            f"routing.{key}={factor} gives {exact:.3g} rows for each of {config.num_experts} "
            f"experts in a group of {group_size} tokens, so every token would be dropped. Use at "
            f"least {config.num_experts / (choices * group_size):.3g}, larger groups, or "
            "routing.min_capacity=1."
        )
    return slots


def tokens_per_group(config: RoutingConfig, sequences: int, length: int) -> int:
    """S, for a device that holds `sequences` sequences of `length` tokens.

    Raises:
      ConfigError: the configured size does not divide what the device holds.
    """
    tokens = sequences * length
    if not (config.group_size or config.group_sequences):
        limit = min(tokens, config.max_group_size)
        return max(size for size in range(1, limit + 1) if tokens % size == 0)
    key, size, whole, unit = (
        ("group_size", config.group_size, tokens, "tokens")
        if config.group_size
        else ("group_sequences", config.group_sequences, sequences, "sequences")
    )
    if whole % size:
        fits = max(n for n in range(1, min(size, whole) + 1) if whole % n == 0)
        raise ConfigError(
            f"routing.{key}={size} does not divide the {whole} {unit} that a device routes "
            f"({sequences} sequences of {length}). The nearest size below that does is {fits}; 0 "
            "chooses one automatically."
        )
    return size if config.group_size else size * length


def policy_name(config: RoutingConfig, *, train: bool) -> str:
    """The second-choice policy in force; "all" when there is no second choice."""
    if config.top_k == 1 or config.router == "experts_choose":
        return "all"
    return config.second_policy if train else config.second_policy_eval


def policy(config: RoutingConfig, *, train: bool) -> Policy:
    """See `policy_name`."""
    key = f"routing.second_policy{'' if train else '_eval'}"
    name = policy_name(config, train=train)
    return extension.pick(POLICIES, name, key, Policy, "a moe.routing.policies.Policy")
