"""ResNet-50's train step, batch 8, 128 px, float32, over timm's, channels_last and NCHW.

Forward, backward and SGD with momentum 0.9, of the same weights and images. Two steps of ours are
timed: the bare one, with loss and update written out here as in a training loop of torch, and the
one that `vitattn-moe train` compiles. The latter also weighs images in the batch statistics,
measures the norm of the gradient and skips updates that are not finite: what it takes beyond the
bare one is what the framework adds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.harness import timing
from benchmarks.harness.goals import Goal, report

LEARNING_RATE, MOMENTUM = 0.01, 0.9
BARE, TRAIN, LAST, FIRST = "ours, bare", "ours, train", "timm, channels_last", "timm, NCHW"
GOALS = [Goal(ours, peer, 0.95, aim=0.85) for peer in (LAST, FIRST) for ours in (TRAIN, BARE)]
# Largest differences, as a share of the norm of what is compared. Small maps and few images make
# the statistics of a batch, and with them the gradients, sensitive to rounding.
MOST = {"loss": 1e-4, "logits": 1e-3, "gradient": 2e-2}
Arrays = Mapping[str, Any]


class Torch:
    """timm's ResNet, its optimiser and its step.

    Args:
      layout: "channels_last" or "contiguous_format", of maps and kernels.
      images: f32 [B, H, W, 3].
      classes: of the network.
      depth: 50, or 18 for a small one.
    """

    def __init__(self, layout: str, images: np.ndarray, classes: int, depth: int):
        import timm  # pyright: ignore[reportMissingImports]
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)
        form = {"memory_format": getattr(torch, layout)}
        self.model = timm.create_model(f"resnet{depth}", num_classes=classes)
        for name, weight in self.model.named_parameters():
            if not weight.any():  # the last scale of a branch: at 0 the branch would test nothing
                torch.nn.init.constant_(weight, 0.2 if name.endswith("weight") else 0.0)
        self.weights = {k: v.numpy().copy() for k, v in self.model.state_dict().items()}
        self.model.to(**form).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), LEARNING_RATE, momentum=MOMENTUM)
        self.images = torch.tensor(images).permute(0, 3, 1, 2).contiguous(**form)
        self.labels = torch.arange(len(images))

    def step(self) -> dict[str, Any]:
        """One train step; returns its loss and logits."""
        from torch.nn.functional import cross_entropy

        self.optimizer.zero_grad()
        logits = self.model(self.images)
        loss = cross_entropy(logits, self.labels)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach().numpy(), "logits": logits.detach().numpy()}

    def gradients(self) -> Arrays:
        """Those of the last step, by torch's names."""
        return {n: w.grad.numpy() for n, w in self.model.named_parameters() if w.grad is not None}


class Ours:
    """The same network with the same weights, and both of its steps.

    Args:
      weights: torch's, before its first step.
      images: f32 [B, H, W, 3].
      classes: of the network.
      depth: 50, or 18 for a small one.
    """

    def __init__(self, weights: Arrays, images: np.ndarray, classes: int, depth: int):
        import jax
        import jax.numpy as jnp

        import configs
        import vitattn.plan
        from trainlib.sharding.mesh import make_mesh
        from trainlib.step import train_state
        from vitattn.interop import torchvision

        size = images.shape[1]
        network = {"depth": depth, "image_size": size, "num_classes": classes, "dtype": "float32"}
        config = configs.load(
            "resnet50",
            batch_size=len(images),
            model=network | {"bn_decay": 0.9},
            optimizer={"momentum": MOMENTUM, "weight_decay": 0.0},
            schedule={"name": "constant", "learning_rate": LEARNING_RATE, "warmup_steps": 0},
        )
        self.plan = vitattn.plan.make(config, make_mesh(devices=jax.devices()[:1]))
        self.entries = torchvision.layout(config, "safetensors", "torchvision").entries
        self.images, self.labels = jnp.asarray(images), jnp.arange(len(images))
        state = train_state.create(
            self.plan.abstract, self.plan.optimizer, jax.random.key(0), self.plan.shardings
        )
        given = self.renamed(weights)
        put = functools.partial(jax.tree.map, lambda old, new: jax.device_put(new, old.sharding))
        self.first = {name: given[name] for name in state.params}
        self.state = dataclasses.replace(
            state,
            params=put(state.params, self.first),
            model_state=put(state.model_state, {name: given[name] for name in state.model_state}),
        )

    def renamed(self, theirs: Arrays) -> dict[str, np.ndarray]:
        """Tensors in torch's names and forms -> in ours."""
        return {
            entry.ours: entry.transform.back(theirs[entry.theirs])
            for entry in self.entries
            if entry.theirs in theirs
        }

    def bare(self):
        """A function that runs a step without a framework, and returns its loss and logits."""
        import jax
        import jax.numpy as jnp

        from trainlib.model import statistics
        from trainlib.model.weights import observed

        spec = self.plan.abstract

        def loss_fn(params, model_state):
            model = spec.bind(params, model_state)
            logits: Any = model(self.images, train=True)
            log_probabilities = jax.nn.log_softmax(logits)
            loss = -jnp.mean(jnp.take_along_axis(log_probabilities, self.labels[:, None], 1))
            return loss, (logits, observed(model))

        @functools.partial(jax.jit, donate_argnums=(0, 1, 2, 3))
        def step(params, model_state, counts, velocity):
            value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, (logits, seen)), gradients = value_and_grad(params, model_state)
            model_state, counts = statistics.follow(model_state, counts, seen)
            velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
            params = jax.tree.map(lambda p, v: p - LEARNING_RATE * v, params, velocity)
            return (params, model_state, counts, velocity), {"loss": loss, "logits": logits}

        copied = jax.tree.map(jnp.copy, (self.state.params, self.state.model_state))
        velocity = jax.tree.map(jnp.zeros_like, self.state.params)
        carried: Any = (*copied, jax.tree.map(jnp.copy, self.state.counts), velocity)

        def run():
            nonlocal carried
            carried, said = jax.block_until_ready(step(*carried))
            return said | {"params": carried[0]}

        return run

    def train(self):
        """A function that runs the step of `vitattn-moe train`, and returns its loss."""
        import jax

        from trainlib.step.step import compile_train, put_batch
        from vitattn.objective import make_loss

        step = compile_train(make_loss(self.plan), self.plan)
        batch = {
            "image": np.asarray(self.images),
            "label": np.asarray(self.labels, np.int32),
            "weight": np.ones(len(self.labels), np.float32),
        }
        batch = put_batch(batch, self.plan.batch_sharding)

        def run():
            self.state, sums = jax.block_until_ready(step(self.state, batch))
            return {"loss": sums["loss"][0], "params": self.state.params}

        return run

    def gradients(self, params: Arrays) -> Arrays:
        """Those of the first step, from the weights that it left."""
        return {name: (was - params[name]) / LEARNING_RATE for name, was in self.first.items()}


def check(name: str, said: Arrays, expected: Arrays) -> None:
    """Stops the row where two sides do not compute the same.

    Args:
      name: of the side.
      said: what it computed, name -> array.
      expected: what all compute.

    Raises:
      SystemExit: says what differs.
    """
    for key, there in expected.items():
        if key not in said:
            continue
        there = np.asarray(there, np.float64)
        off = np.linalg.norm(np.asarray(said[key], np.float64) - there) / np.linalg.norm(there)
        most = MOST.get(key, MOST["gradient"])
        if not off <= most:
            raise SystemExit(
                f"{name} computes another {key} than {LAST}: they differ by {off:.1e} of its norm, "
                f"and {most:.0e} is allowed. A time beside it would mean nothing."
            )


def sides(batch: int, pixels: int, classes: int, depth: int) -> dict[str, Any]:
    """What is timed, by name, after one step of each that was compared with the others."""
    from benchmarks.harness import torch_vision

    torch_vision.prepare()
    images = np.random.default_rng(0).normal(size=(batch, pixels, pixels, 3)).astype(np.float32)
    last = Torch("channels_last", images, classes, depth)
    first = Torch("contiguous_format", images, classes, depth)
    ours = Ours(last.weights, images, classes, depth)
    expected = last.step() | ours.renamed(last.gradients())
    check(FIRST, first.step() | ours.renamed(first.gradients()), expected)
    runs = {BARE: ours.bare(), TRAIN: ours.train()}
    for name, run in runs.items():
        said = run()
        check(name, said | ours.gradients(said["params"]), expected)
    return runs | {LAST: last.step, FIRST: first.step}


def main() -> int:
    """Compares and times all four; returns 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4, help="timed rounds, of three steps each")
    for name, size in {"batch": 8, "pixels": 128, "classes": 1000, "depth": 50}.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    chosen = vars(parser.parse_args())
    rounds = chosen.pop("rounds")
    timing.need_peers("torch", "timm")
    timing.pin_one_thread()
    print(timing.header(("jax", "jaxlib", "torch", "timm")))
    title = "ResNet-{depth} train step, batch {batch}, {pixels} px, float32".format(**chosen)
    return report(title, timing.fastest(sides(**chosen), rounds, in_a_row=3), GOALS)


if __name__ == "__main__":
    sys.exit(main())
