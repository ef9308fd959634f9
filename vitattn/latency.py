"""How long a published model takes to answer a batch of images: measured here, or predicted.

Letters: B images of a batch, H W image.

What is timed is one call of a compiled program on one device, images in its memory: a classifier
up to its probabilities, a detector up to its detections, suppression of overlapping boxes
included. A detector is given no threshold, so that it has as many boxes to compare whatever its
weights are. Reading and normalising images is left out, as in both papers.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainlib.chips import GIB, usable_cores
from trainlib.errors import ConfigError
from trainlib.model import weights
from trainlib.model.weights import Abstract, Arrays
from vitattn.detection.answers.postprocess import Options, detect
from vitattn.models import Model, ModelConfig, build, configure
from vitattn.models.retinanet.config import RetinaNetConfig

LEAST_RUNS, MOST_RUNS = 5, 50
Inference = Callable[[Arrays, Arrays, jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is asked of every model.

    Attributes:
      batch: B.
      dtype: of the computation; "" is float32 on a CPU and bfloat16 elsewhere.
      image_size: side of the images, or (height, width); None is what the model is published with.
      seconds: that runs of one model may take together, though there are at least `LEAST_RUNS`.
    """

    batch: int = 1
    dtype: str = ""
    image_size: int | tuple[int, int] | None = None
    seconds: float = 3.0


@dataclasses.dataclass(frozen=True)
class Latency:
    """What a batch takes.

    Attributes:
      seconds: the median of the runs, or what is predicted.
      low: first quartile of the runs, in seconds; the prediction itself where nothing was run.
      high: third quartile.
      runs: that were timed, after one that was not; 0 of a prediction.
      batch: B.
      image_size: H, W.
      dtype: of the computation.
      device: that it was measured on, or is predicted for.
    """

    seconds: float
    low: float
    high: float
    runs: int
    batch: int
    image_size: tuple[int, int]
    dtype: str
    device: str

    @property
    def images_per_second(self) -> float:
        return self.batch / self.seconds


def this_device() -> str:
    """The device that `measure` runs on, in words."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    cores = usable_cores()
    return f"the CPU of this machine ({cores} core{'s' * (cores > 1)})"


def measure(section: Mapping[str, Any], setting: Setting) -> Latency:
    """Runs a model on the first device of this machine.

    Args:
      section: plain data for `vitattn.models.build`.
      setting: what is asked; random weights and images, as times do not depend on their values.

    Raises:
      ConfigError: a model that cannot be of this size.
    """
    section, config = _as_asked(section, setting, jax.default_backend() == "cpu")
    abstract = weights.abstract(build(section))
    keys = jax.random.split(jax.random.key(0), 2)
    arguments = (
        weights.initialise(abstract.params, keys[0]),
        weights.initialise(abstract.model_state, keys[0]),
        jax.random.normal(keys[1], (setting.batch, *config.size, 3)),
    )
    run = jax.jit(_inference(abstract, config)).lower(*arguments).compile()
    times = sorted(_timed(lambda: run(*arguments), setting.seconds))
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(
        *(middle, low, high, len(times)), setting.batch, config.size, config.dtype, this_device()
    )


def _timed(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each call after the first, which warms up."""
    jax.block_until_ready(call())
    times: list[float] = []
    while len(times) < LEAST_RUNS or (sum(times) < seconds and len(times) < MOST_RUNS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return times


def predict(section: Mapping[str, Any], setting: Setting, target: str) -> Latency:
    """What the schedule of the program takes that a TPU's compiler makes; nothing is run.

    Args:
      section: plain data for `vitattn.models.build`.
      setting: what is asked.
      target: as in `trainlib.chips.target`; one device of it is taken.

    Raises:
      ConfigError: an unknown target, one without a compiler that tells times, a batch that does
        not fit, or libtpu is not installed.
    """
    from trainlib import chips
    from trainlib.planning.compile import read_shortfall
    from trainlib.planning.ledger import ledger_of

    wanted = chips.target(target)
    if not wanted.chip.clock:
        raise ConfigError(
            f"--latency={target}: what a batch takes is predicted for TPUs alone, whose compiler "
            "tells the time of every operation. Measure it on a machine with that GPU: --latency."
        )
    section, config = _as_asked(section, setting, on_cpu=False)
    abstract = weights.abstract(build(section))
    images = jax.ShapeDtypeStruct((setting.batch, *config.size, 3), jnp.float32)
    shapes = (_shapes(abstract.params), _shapes(abstract.model_state), images)
    try:
        seconds = ledger_of(_inference(abstract, config), *shapes, target=target).schedule.seconds
    except jax.errors.JaxRuntimeError as error:
        if (short := read_shortfall(str(error))) is None:
            raise
        raise ConfigError(
            f"--batch={setting.batch} needs {short.required / GIB:.1f} GiB, and a device of "
            f"{target} has {short.available / GIB:.1f}. Ask for fewer images."
        ) from error
    device = f"one device of {target}" if wanted.devices > 1 else target
    return Latency(
        *(seconds, seconds, seconds, 0), setting.batch, config.size, config.dtype, device
    )


def _shapes(specs: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for name, spec in specs.items()}


def _as_asked(
    section: Mapping[str, Any], setting: Setting, on_cpu: bool
) -> tuple[dict[str, Any], ModelConfig]:
    """The model with the type and the size of a setting: plain data, and what it says."""
    section = dict(section)
    section["dtype"] = setting.dtype or ("float32" if on_cpu else "bfloat16")
    if setting.image_size is not None:
        section["image_size"] = setting.image_size
    return section, configure(section)


def _inference(abstract: Abstract[Model], config: ModelConfig) -> Inference:
    """(weights, running statistics, images f32 [B, H, W, 3]) -> what the model answers."""

    def infer(params: Arrays, state: Arrays, images: jax.Array) -> Any:
        outputs: Any = abstract.bind(params, state)(images, train=False)
        if isinstance(config, RetinaNetConfig):
            return detect(outputs, config, Options(score_threshold=0.0))
        return jax.nn.softmax(outputs)

    return infer
