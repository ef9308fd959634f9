"""Train steps of AA-ResNet-50 and SASA-ResNet-26, 224 px, over torch.

Batch 8, 1000 classes, float32, SGD with momentum 0.9: forward, backward and update. The first peer
is the same network with attention materialised (timm's bottleneck structure) or by
scaled_dot_product_attention with the position terms as an additive mask, channels_last; losses and
all gradients are compared first. The second is the same ResNet-26 with timm's halo attention: its
blocks of 7 x 7 attend to all of 13 x 13 pixels where each of our pixels attends to 7 x 7, it scales
its logits and its tables have more rows, so only structure and size are alike. Ours is compared
with plain references in the tests.

    python -m benchmarks.peers.vision_attention_step --only AA
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks.harness import goals, timing
from benchmarks.harness.goals import Goal

AUGMENTED = {
    "name": "resnet",
    "depth": 50,
    "attention": {"kind": "augmented"},
}
STANDALONE = {"name": "resnet", "depth": 26, "attention": {"kind": "local"}}
COUNTS = {"AA": (3, 4, 6, 3), "SASA": (1, 2, 4, 1)}


def augmented(options: argparse.Namespace) -> int:
    """AA-ResNet-50."""
    from benchmarks.harness import torch_resnet
    from benchmarks.harness.vision_training import Ours, Torch, data, same

    images, labels = data(options.batch, options.pixels)
    sizes = {"image_size": options.pixels, "num_classes": options.classes}
    ours = Ours({**AUGMENTED, **sizes}, images, labels)
    runs = {}
    for name, fused in (("materialised", False), ("scaled_dot_product", True)):
        spatial = torch_resnet.augmented(fused)
        network = torch_resnet.ResNet(COUNTS["AA"], options.pixels, options.classes, spatial)
        peer = Torch(network, images, labels, channels_last=True)
        same(ours, peer)
        runs[f"torch {name}"] = peer.candidate()
    runs = {"ours": ours.candidate(), **runs}
    return goals.report(
        f"AA-ResNet-50 step, {ours.spec.param_count:,} parameters, batch {options.batch}, "
        f"{options.pixels} px, one core",
        timing.fastest(runs, options.rounds),
        [
            Goal("ours", "torch materialised", 0.90, aim=0.75),
            Goal("ours", "torch scaled_dot_product", 0.90, aim=0.75),
        ],
    )


def standalone(options: argparse.Namespace) -> int:
    """SASA-ResNet-26."""
    from benchmarks.harness import torch_resnet, torch_vision
    from benchmarks.harness.vision_training import Ours, Torch, data

    torch_vision.prepare()
    images, labels = data(options.batch, options.pixels)
    sizes: dict[str, Any] = {"image_size": options.pixels, "num_classes": options.classes}
    ours = Ours({**STANDALONE, **sizes}, images, labels)
    network = torch_resnet.ResNet(
        COUNTS["SASA"], options.pixels, options.classes, torch_resnet.halo
    )
    count = sum(x.numel() for x in network.parameters())
    # Tables of 2 x 25 rows of a head's depth where ours have 7; of 8 heads in all stages 232.
    if count - ours.spec.param_count != (2 * 25 - 7) * 232:
        raise SystemExit(f"The networks differ by more than their tables: {count:,} parameters.")
    peer = Torch(network, images, labels, channels_last=True)
    runs = {"ours": ours.candidate(), "torch halo": peer.candidate()}
    return goals.report(
        f"SASA-ResNet-26 step, {ours.spec.param_count:,} parameters (halo {count:,}), batch "
        f"{options.batch}, {options.pixels} px, one core",
        timing.fastest(runs, options.rounds),
        [Goal("ours", "torch halo", 0.60, aim=0.45)],
    )


def main() -> int:
    """Prints times and ratios; returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", choices=("AA", "SASA"), help="one of the networks")
    parser.add_argument("--rounds", type=int, default=4, help="timed rounds of each candidate")
    parser.add_argument("--batch", type=int, default=8, help="images")
    parser.add_argument("--pixels", type=int, default=224, help="side of an image")
    parser.add_argument("--classes", type=int, default=1000, help="logits")
    options = parser.parse_args()
    timing.need_peers("torch", *(() if options.only == "AA" else ("timm",)))
    timing.pin_one_thread()
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(timing.header(("jax", "jaxlib", "torch", "timm")), flush=True)
    code = 0
    if options.only != "SASA":
        code |= augmented(options)
    if options.only != "AA":
        code |= standalone(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
