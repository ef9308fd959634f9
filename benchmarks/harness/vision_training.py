"""A train step of an image classifier, ours and torch's, for comparison: SGD with momentum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

LEARNING_RATE, MOMENTUM = 0.01, 0.9


def data(batch: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Images f32 [B, H, W, 3] and labels i32 [B]."""
    images = np.random.default_rng(0).standard_normal((batch, pixels, pixels, 3), np.float32)
    return images, np.arange(batch, dtype=np.int32)


class Ours:
    """Our network and its step.

    Args:
      model: as `vitattn.models.build` takes it.
      images: f32 [B, H, W, 3].
      labels: i32 [B].
    """

    def __init__(self, model: Mapping[str, Any], images: np.ndarray, labels: np.ndarray):
        import jax
        import jax.numpy as jnp

        from trainlib.model.weights import abstract, initialise
        from vitattn.models import build

        self.spec = abstract(build(model))
        self.params = initialise(self.spec.params, jax.random.key(0))
        # Branches that begin as nothing would hide what is in them from a comparison.
        for name, value in self.params.items():
            if name.endswith("norm3.scale"):
                self.params[name] = jnp.full_like(value, 0.5)
        self.model_state = initialise(self.spec.model_state, jax.random.key(1))
        self.images, self.labels = jnp.asarray(images), jnp.asarray(labels)

    def loss(self, params, model_state):
        """Cross-entropy, and what layers saw of the batch."""
        import jax
        import jax.numpy as jnp

        from trainlib.model.weights import observed

        model = self.spec.bind(params, model_state)
        logits: Any = model(self.images, train=True)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), self.labels[:, None], 1)
        return -jnp.mean(picked), observed(model)

    def gradients(self) -> tuple[float, dict[str, np.ndarray]]:
        """The loss, and its gradient in every parameter."""
        import jax

        values = jax.jit(jax.value_and_grad(self.loss, has_aux=True))
        (loss, _), found = values(self.params, self.model_state)
        return float(loss), {name: np.asarray(x) for name, x in found.items()}

    def program(self) -> tuple[Any, tuple]:
        """The step, compiled, and the state that it takes and returns."""
        import jax
        import jax.numpy as jnp

        from trainlib.model import statistics

        def step(params, model_state, counts, velocity):
            found, seen = jax.grad(self.loss, has_aux=True)(params, model_state)
            model_state, counts = statistics.follow(model_state, counts, seen)
            velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, found)
            params = jax.tree.map(lambda p, v: p - LEARNING_RATE * v, params, velocity)
            return params, model_state, counts, velocity

        state = (
            self.params,
            self.model_state,
            statistics.fresh(self.model_state),
            jax.tree.map(jnp.zeros_like, self.params),
        )
        state = jax.tree.map(jnp.copy, state)  # a step takes its state away
        jitted = jax.jit(step, donate_argnums=(0, 1, 2, 3))
        return jitted.lower(*state).compile(), state

    def candidate(self) -> Callable[[], object]:
        """One step and the wait for it, for `timing.fastest`."""
        import jax

        program, state = self.program()

        def run():
            nonlocal state
            state = jax.block_until_ready(program(*state))

        return run


class Torch:
    """A network of torch and its step.

    Args:
      network: takes images [B, 3, H, W].
      images: f32 [B, H, W, 3].
      labels: i32 [B].
      channels_last: the layout of maps and weights.
    """

    def __init__(self, network: Any, images: np.ndarray, labels: np.ndarray, channels_last: bool):
        import torch

        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=layout).train()
        maps = torch.tensor(images).permute(0, 3, 1, 2)
        self.images = maps.contiguous(memory_format=layout)
        self.labels = torch.tensor(labels).long()

    def loss(self):
        """Cross-entropy, a tensor that has its gradient."""
        import torch

        return torch.nn.functional.cross_entropy(self.network(self.images), self.labels)

    def candidate(self) -> Callable[[], object]:
        """One step, for `timing.fastest`."""
        import torch

        parameters = self.network.parameters()
        optimiser = torch.optim.SGD(parameters, LEARNING_RATE, momentum=MOMENTUM)

        def run():
            optimiser.zero_grad()
            self.loss().backward()
            optimiser.step()

        return run


def same(ours: Ours, peer: Torch, worst: float = 0.04, median: float = 0.015) -> None:
    """Gives the peer our weights and compares losses and all gradients.

    Torch computes them in float64: of 50 normalised layers at their random start, the two sides of
    a ReLU are told apart by rounding for some pixels, and torch's own gradients in float32 are off
    by 3 % (6 % at 64 px), ours by 1 %, which would hide what differs.

    Args:
      ours: our network.
      peer: the same in torch, of `benchmarks.harness.torch_resnet`.
      worst: the largest difference of a gradient, as a share of its norm.
      median: the same for half of the gradients.

    Raises:
      SystemExit: they compute different things.
    """
    from benchmarks.harness import torch_resnet

    torch_resnet.load(peer.network, {name: np.asarray(x) for name, x in ours.params.items()})
    want, found = ours.gradients()
    images, peer.images = peer.images, peer.images.double()
    peer.network.double()
    loss = peer.loss()
    loss.backward()
    off = {}
    theirs = torch_resnet.gradients(peer.network, found)
    for name, gradient in found.items():
        off[name] = float(np.linalg.norm(theirs[name] - gradient) / np.linalg.norm(theirs[name]))
    peer.images = images
    peer.network.float().zero_grad()
    name, half = max(off, key=lambda name: off[name]), float(np.median(list(off.values())))
    differ = f"gradients differ by {half:.1g}, {name} by {off[name]:.1g}"
    print(f"loss {want:.6f}, {loss.item():.6f}; {differ}")
    if not (abs(loss.item() - want) < 1e-4 * want and off[name] < worst and half < median):
        raise SystemExit("Both compute different things.")
