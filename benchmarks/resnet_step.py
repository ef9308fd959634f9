"""ResNet-50 train step against torch on one CPU core: `python -m benchmarks.resnet_step`.

Batch 8, 128 x 128 pixels, 1000 classes, float32, SGD with momentum 0.9: forward, backward and
update. The peer is the same network written in torch, channels_last; without torch only our own
time is printed. Target: at most 1.2 times torch's CPU time.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

from benchmarks.harness import timing

BATCH, PIXELS, CLASSES = 8, 128, 1000
LEARNING_RATE, MOMENTUM = 0.01, 0.9


def jax_step():
    """Returns a function that runs one step of our model and waits for it."""
    import jax
    import jax.numpy as jnp

    from trainlib.model import statistics
    from trainlib.model.weights import abstract, initialise, observed
    from vitattn.models import build

    spec = abstract(build({"name": "resnet", "image_size": PIXELS, "num_classes": CLASSES}))
    params = initialise(spec.params, jax.random.key(0))
    model_state = initialise(spec.model_state, jax.random.key(1))
    counts = statistics.fresh(model_state)
    velocity = jax.tree.map(jnp.zeros_like, params)
    images = jax.random.normal(jax.random.key(2), (BATCH, PIXELS, PIXELS, 3))
    labels = jnp.arange(BATCH)

    def loss_fn(params, model_state):
        model = spec.bind(params, model_state)
        logits: Any = model(images, train=True)
        log_probabilities = jax.nn.log_softmax(logits)
        loss = -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], 1))
        return loss, observed(model)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2, 3))
    def step(params, model_state, counts, velocity):
        gradients, seen = jax.grad(loss_fn, has_aux=True)(params, model_state)
        model_state, counts = statistics.follow(model_state, counts, seen)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
        params = jax.tree.map(lambda p, v: p - LEARNING_RATE * v, params, velocity)
        return params, model_state, counts, velocity

    state = (params, model_state, counts, velocity)

    def run():
        nonlocal state
        state = jax.block_until_ready(step(*state))

    return run


def torch_step(channels_last: bool):
    """Returns a function that runs one step of the same network in torch."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    conv = functools.partial(nn.Conv2d, bias=False)

    class Bottleneck(nn.Module):
        def __init__(self, in_channels, channels, stride):
            super().__init__()
            self.branch = nn.Sequential(
                conv(in_channels, channels, 1),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                conv(channels, channels, 3, stride, 1),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                conv(channels, 4 * channels, 1),
                nn.BatchNorm2d(4 * channels),
            )
            self.shortcut = nn.Identity()
            if stride > 1 or in_channels != 4 * channels:
                self.shortcut = nn.Sequential(
                    conv(in_channels, 4 * channels, 1, stride), nn.BatchNorm2d(4 * channels)
                )

        def forward(self, x):
            return nn.functional.relu(self.branch(x) + self.shortcut(x), inplace=True)

    layers = [conv(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    in_channels = 64
    for stage, (channels, blocks) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)):
        for block in range(blocks):
            layers.append(Bottleneck(in_channels, channels, 2 if stage and not block else 1))
            in_channels = 4 * channels
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, CLASSES)]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = nn.Sequential(*layers)
    model.to(memory_format=layout)  # pyright: ignore[reportCallIssue]  # no overload says so
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=MOMENTUM)
    images = torch.randn(BATCH, 3, PIXELS, PIXELS).to(memory_format=layout)
    labels = torch.arange(BATCH)

    def run():
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()

    return run


def main():
    """Prints CPU times and their ratios."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each candidate")
    rounds = parser.parse_args().rounds
    timing.pin_one_thread()
    print(timing.header())
    candidates = {"jax NHWC": jax_step()}
    try:
        candidates["torch channels_last"] = torch_step(True)
        candidates["torch NCHW"] = torch_step(False)
    except ImportError:
        print("torch is not installed: no peer to compare with")
    times = timing.fastest(candidates, rounds)
    print(f"\nResNet-50 train step, batch {BATCH}, {PIXELS} px, float32, one core")
    for name, milliseconds in times.items():
        print(
            f"{name:20} {milliseconds:8.0f} ms   jax / this {times['jax NHWC'] / milliseconds:.2f}"
        )


if __name__ == "__main__":
    main()
