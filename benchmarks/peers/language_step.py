"""Train step of a small Switch Transformer against `transformers`, and over its bare products.

    python -m benchmarks.peers.language_step [--dropout 0.1 0] [--rounds 7]

Top-1, d_model 128, d_ff 256, 4 + 4 blocks of which every other one has 4 experts, 32 sequences of
128 + 48 tokens, 512 words, float32, AdamW. Both sides have the same weights, through our own
export, and the same batch. First, without dropout and with cross-entropy alone, the losses, all
gradients and the loss after a step of each optimiser have to agree. Then whole steps are timed,
with the router losses of each side and with dropout (theirs draws for each token, ours as T5 does,
once for all positions of a sequence). `bare products` are all matrix products of such a step,
forward and backward, on arrays that lie ready.

Letters: B batch, L length, D model width, N heads, H width of one head, F hidden width, E experts,
V vocabulary.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import goals, timing, torch_vision

if TYPE_CHECKING:
    from ml_collections import ConfigDict

SIZES = {"batch": 32, "encoder": 128, "decoder": 48}
MODEL = {
    **{"d_model": 128, "d_ff": 256, "num_heads": 4, "head_dim": 32, "vocab_size": 512},
    **{"encoder_blocks": 4, "decoder_blocks": 4, "activation": "relu", "extra_ffn": "none"},
    **{"sparse_period": 2, "sparse_offset": 1, "tie_word_embeddings": True},
    **{"dtype": "float32", "remat": "none", "init_scale": 1.0},
}
ROUTING = {"num_experts": 4, "top_k": 1, "group_sequences": 1, "capacity_factor": 1.25}
RATE, DECAY = 1e-3, 0.01
GOALS = [
    goals.Goal("ours", "transformers", 0.90, aim=0.75),
    goals.Goal("ours", "bare products", 1.6),
]
TOLERANCE = 1e-3  # of the largest entry of a gradient, and of the loss; kinks of ReLU fall apart


def config_of(sizes: dict[str, int], dropout: float, *, plain: bool = False) -> ConfigDict:
    """Our configuration; `plain` has cross-entropy as its only loss."""
    from moe.config import default_config

    config = default_config()
    config.name = "switch_step"
    config.batch_size, config.steps, config.microbatches = sizes["batch"], 100, 1
    config.model.update(MODEL, dropout=dropout)
    config.routing.update(ROUTING, min_capacity=1)
    config.data.update(encoder_length=sizes["encoder"], decoder_length=sizes["decoder"])
    if plain:
        config.routing.update(balance_loss_weight=0.0, z_loss_weight=0.0)
        config.objective.z_loss = 0.0
    config.optimizer.update(name="adamw", weight_decay=DECAY, decay_pattern=".")
    config.schedule.update(name="constant", learning_rate=RATE)
    return config


def batch_of(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Random words; every other sequence ends in padding."""
    random, made = np.random.default_rng(0), {}
    for stack in ("encoder", "decoder"):
        shape = sizes["batch"], sizes[stack]
        seen = np.ones(shape, np.int32)
        seen[::2, shape[1] * 7 // 8 :] = 0
        words = random.integers(1, MODEL["vocab_size"], shape, dtype=np.int32) * seen
        made |= {f"{stack}_inputs": words, f"{stack}_segments": seen}
    targets = made["decoder_inputs"]
    made["decoder_targets"] = targets
    made["decoder_weights"] = made["decoder_segments"].astype(np.float32)
    made["decoder_inputs"] = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    return made


class Ours:
    """Our step, as `launch.train` runs it."""

    def __init__(self, config: ConfigDict, batch: dict[str, np.ndarray]):
        import jax

        from moe import objective, plan
        from trainlib.sharding.mesh import make_mesh
        from trainlib.step import step, train_state

        self.plan = plan.make(config, make_mesh(devices=jax.devices()[:1]))
        self.loss = objective.make_loss(self.plan)
        self.step = step.compile_train(self.loss, self.plan)
        self.batch = step.put_batch(batch, self.plan.batch_sharding)
        self.state = train_state.create(
            self.plan.abstract, self.plan.optimizer, jax.random.key(1), self.plan.shardings
        )

    def gradients(self) -> tuple[float, dict[str, np.ndarray]]:
        """Loss and gradients of the present weights."""
        import jax

        grad = jax.jit(jax.value_and_grad(self.loss, has_aux=True))
        state = self.state
        (loss, _), grads = grad(state.params, state.model_state, self.batch, jax.random.key(0))
        return float(loss), {name: np.asarray(value) for name, value in grads.items()}

    def __call__(self) -> float:
        self.state, sums = self.step(self.state, self.batch)
        return float(sums["loss"][0])


class Theirs:
    """The step of `transformers` with fused AdamW."""

    def __init__(self, ours: Ours, sizes: dict[str, int], dropout: float, *, plain: bool = False):
        import torch

        if importlib.util.find_spec("torchvision"):  # which transformers imports where it is there
            torch_vision.prepare()
        import transformers
        from transformers import SwitchTransformersForConditionalGeneration as Model

        from moe import interop
        from moe.routing.config import capacity
        from trainlib.formats import layout

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.torch, self.plain = torch, plain
        self.layout = interop.layout(ours.plan.config, "safetensors", "hf")
        self.give = layout.give
        settings = json.loads(self.layout.files["config.json"]) | {"dropout_rate": dropout}
        self.model = Model(transformers.SwitchTransformersConfig(**settings))
        for stack in ("encoder", "decoder"):
            routing = ours.plan.model.stack_routing(stack)
            assert routing is not None
            slots = capacity(routing, sizes[stack], train=True)
            for module in getattr(self.model, stack).modules():
                if hasattr(module, "expert_capacity"):
                    module.expert_capacity = slots
        params = {name: np.asarray(value) for name, value in ours.state.params.items()}
        weights = {n: torch.tensor(v) for n, v in self.named(params).items()}
        missing = self.model.load_state_dict(weights, strict=False)
        if missing.unexpected_keys or set(missing.missing_keys) - _TIED:
            raise SystemExit(f"The weights do not fit: {missing}.")
        self.model.tie_weights()
        self.model.train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=RATE, eps=1e-8, weight_decay=DECAY, fused=True
        )
        batch = {n: torch.from_numpy(np.array(v, np.int64)) for n, v in ours.batch.items()}
        targets, real = batch["decoder_targets"], batch["decoder_segments"] > 0
        self.inputs = {
            "input_ids": batch["encoder_inputs"],
            "attention_mask": batch["encoder_segments"],
            "decoder_input_ids": batch["decoder_inputs"],
            "decoder_attention_mask": batch["decoder_segments"],
            "labels": torch.where(real, targets, torch.full_like(targets, -100)),
        }

    def named(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays by our names -> by theirs."""
        return {
            name: np.array(value)
            for leaf, entries in self.layout.by_leaf().items()
            for name, value in self.give(entries, arrays[leaf], None)
        }

    def backward(self) -> float:
        """Loss and gradients of the present weights."""
        self.optimizer.zero_grad(set_to_none=True)
        out = self.model(**self.inputs, output_router_logits=not self.plain, use_cache=False)
        out.loss.backward()
        return float(out.loss.detach())

    def __call__(self) -> float:
        loss = self.backward()
        self.optimizer.step()
        return loss


_TIED = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}


def check(sizes: dict[str, int], batch: dict[str, np.ndarray]) -> str:
    """Compares losses, gradients and the loss after one update, all without dropout.

    Raises:
      SystemExit: the two sides do not compute the same.
    """
    ours = Ours(config_of(sizes, 0.0, plain=True), batch)
    theirs = Theirs(ours, sizes, 0.0, plain=True)
    mine, gradients = ours.gradients()
    losses = [(mine, theirs.backward())]
    worst, where, compared = 0.0, "", 0
    parameters = dict(theirs.model.named_parameters())
    for name, value in theirs.named(gradients).items():
        if name in _TIED:
            continue
        grad = parameters[name].grad
        if grad is None:  # of an expert that no token chose
            if np.any(value):
                raise SystemExit(f"{name} has a gradient here and none in transformers.")
            continue
        other = grad.numpy()
        difference = float(np.max(np.abs(value - other)) / np.max(np.abs(other)))
        worst, where = max((worst, where), (difference, name))
        compared += 1
    for side in (ours, theirs):
        side()
    losses.append((ours(), theirs()))
    apart = max(abs(a / b - 1) for a, b in losses)
    line = (
        f"losses {losses[0][0]:.6f} and {losses[0][1]:.6f}, after a step {losses[1][0]:.6f} and "
        f"{losses[1][1]:.6f}; {compared} gradients differ by at most {worst:.1e} ({where})"
    )
    if not (worst < TOLERANCE and apart < TOLERANCE):
        raise SystemExit(f"The two sides do not compute the same: {line}.")
    return line


def products(sizes: dict[str, int]) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """(how many, shape of A, shape of B) of every product A B of a forward pass."""
    d, f, heads, width = (MODEL[name] for name in ("d_model", "d_ff", "num_heads", "head_dim"))
    experts, inner, rows = ROUTING["num_experts"], heads * width, sizes["batch"] * heads
    tokens = {name: sizes["batch"] * sizes[name] for name in ("encoder", "decoder")}
    for stack, own in tokens.items():
        blocks, length = MODEL[f"{stack}_blocks"], sizes[stack]
        sparse = blocks // MODEL["sparse_period"]
        # Projections of self-attention, and of the queries and results of cross-attention.
        yield blocks * (3 if stack == "encoder" else 4), (own, d), (d, inner)
        yield blocks * (1 if stack == "encoder" else 2), (own, inner), (inner, d)
        keys = [length]
        if stack == "decoder":
            yield blocks * 2, (tokens["encoder"], d), (d, inner)
            keys.append(sizes["encoder"])
        for seen in keys:
            yield blocks, (rows, length, width), (rows, width, seen)
            yield blocks, (rows, length, seen), (rows, seen, width)
        yield blocks - sparse, (own, d), (d, f)
        yield blocks - sparse, (own, f), (f, d)
        # As if every token had a slot and no slot stayed empty.
        yield sparse, (experts, own // experts, d), (experts, d, f)
        yield sparse, (experts, own // experts, f), (experts, f, d)
        yield sparse, (own, d), (d, experts)
    yield 1, (tokens["decoder"], d), (d, MODEL["vocab_size"])


def bare(sizes: dict[str, int]) -> tuple[Callable[[], object], float]:
    """All of `products` and of their gradients, one after another; and their FLOPs."""
    import jax
    import jax.numpy as jnp

    forward = jax.jit(jnp.matmul)
    of_a = jax.jit(lambda dc, b: jnp.matmul(dc, b.swapaxes(-1, -2)))
    of_b = jax.jit(lambda a, dc: jnp.matmul(a.swapaxes(-1, -2), dc))
    work, flops = [], 0.0
    random = np.random.default_rng(0)
    for count, left, right in products(sizes):
        a, b = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in (left, right))
        dc = forward(a, b)
        work += [(forward, a, b)] * count + [(of_a, dc, b)] * count + [(of_b, a, dc)] * count
        flops += 6.0 * count * math.prod(left) * right[-1]

    def run() -> None:
        for product, a, b in work:
            product(a, b).block_until_ready()

    return run, flops


def measure(sizes: dict[str, int], dropout: float, rounds: int) -> int:
    """Times all three and reports; returns the exit code."""
    ours = Ours(config_of(sizes, dropout), batch_of(sizes))
    theirs = Theirs(ours, sizes, dropout)
    run, flops = bare(sizes)
    times = timing.fastest({"ours": ours, "transformers": theirs, "bare products": run}, rounds)
    shape = "{batch} x ({encoder} + {decoder})".format(**sizes)
    title = f"Switch train step, {shape} tokens, dropout {dropout:g}, {flops / 1e9:.1f} GFLOP"
    return goals.report(title, times, GOALS)


def main() -> int:
    """Checks, measures, reports; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--dropout", type=float, nargs="*", default=[0.1, 0.0])
    parser.add_argument("--rounds", type=int, default=7)
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    timing.need_peers("torch", "transformers")
    timing.pin_one_thread()
    sizes = {name: getattr(options, name) for name in SIZES}
    print(timing.header(("jax", "jaxlib", "torch", "transformers")))
    print(check(sizes, batch_of(sizes)))
    return max(measure(sizes, dropout, options.rounds) for dropout in options.dropout)


if __name__ == "__main__":
    sys.exit(main())
