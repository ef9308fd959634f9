"""What the commands ask of a family of models, one Protocol a role.

Each role is a module of the family, with the same names and signatures in every family, which the
type checker compares in `launch.families`. The families import none of this: the arrow points from
the commands to them.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh
    from ml_collections import ConfigDict

    from trainlib.formats.layout import Foreign, Layout
    from trainlib.formats.model_card import Subject
    from trainlib.formats.weight_source import Weights
    from trainlib.model.weights import Abstract, Arrays
    from trainlib.report.samples import Samples
    from trainlib.step.plan import Plan
    from trainlib.step.profile import Steps
    from trainlib.step.step import Batch, LossFn

Fail = Callable[[str], NoReturn]  # `argparse.ArgumentParser.error`
Serving = tuple[Callable[..., Any], dict[str, tuple[tuple, str]], dict[str, Any]]


class Settings(Protocol):
    """`config`: which keys a configuration has."""

    def schema(self, values: Mapping[str, Any] | None = None) -> dict[str, tuple[Any, str]]:
        """Key -> (default, meaning); the values of models and kinds decide which keys exist."""
        ...


class Planning(Protocol):
    """`plan`: what a configuration trains on a mesh."""

    def make(self, config: ConfigDict, mesh: Mesh | None = None) -> Plan[Any]:
        """The plan; without a mesh on the one that the configuration asks for."""
        ...

    def abstract_batch(self, plan: Plan[Any]) -> dict[str, jax.ShapeDtypeStruct]:
        """A global training batch as shapes with shardings."""
        ...


class Objective(Protocol):
    """`objective`: the loss that is trained and the metrics that are measured."""

    def fields(self, plan: Plan[Any]) -> tuple[str, ...]:
        """Names of the arrays of a batch that the loss reads."""
        ...

    def make_loss(self, plan: Plan[Any]) -> LossFn:
        """`(params, model_state, batch, key) -> (mean loss, LossOutput)`."""
        ...

    def make_evaluate(self, plan: Plan[Any]) -> Callable[[Arrays, Arrays, Batch], Any]:
        """`(params, model_state, batch) -> sums`, or other arrays of a batch."""
        ...


class Source(Protocol):
    """A split of a data set."""

    def __len__(self) -> int: ...


class Training(Protocol):
    """`train`: the training loop."""

    def run(self, config: ConfigDict, workdir: Path, profile: Steps | None = None) -> int:
        """Trains in `workdir`, or resumes there; returns the exit code. Of the steps `profile` a
        trace is written.
        """
        ...


class Evaluating(Protocol):
    """`evaluate`: measures a checkpoint."""

    def run(
        self,
        config: ConfigDict,
        workdir: Path,
        at_step: int | None = None,
        write_predictions: Path | None = None,
    ) -> dict[str, Any]:
        """Prints and returns what the step (None: the newest) reaches.

        `write_predictions` is a directory for the answers; tasks without such files refuse it.
        """
        ...


class Predicting(Protocol):
    """`predict`: applies a checkpoint to new data."""

    def run(
        self, config: ConfigDict, workdir: Path, request: Any, at_step: int | None = None
    ) -> int:
        """Answers a request, which `Family.request` made; returns the exit code."""
        ...


class Sampling(Protocol):
    """`samples`: asks a checkpoint about held-out data, for the page of a run."""

    def take(self, config: ConfigDict, workdir: Path, at_step: int | None, count: int) -> Samples:
        """Answers to at most `count` held-out examples with their truth, of a step (None: the
        newest).
        """
        ...


class Describing(Protocol):
    """`describe`: the facts of a configuration, without any array."""

    def describe(self, config: ConfigDict) -> dict[str, Any]:
        """Parameters, FLOPs and published figures as plain data."""
        ...

    def row(self, facts: dict[str, Any]) -> list[str]:
        """The facts as cells of the table of all configurations."""
        ...


class Interop(Protocol):
    """`interop`: weights in the formats of other libraries."""

    @property
    def START(self) -> str:
        """What the command line needs beside init_from to start from an import."""
        ...

    @property
    def COMPARED(self) -> Mapping[str, tuple[str, ...]]:
        """Format -> libraries that a comparison of logits takes."""
        ...

    def abstract(self, config: ConfigDict) -> Abstract:
        """The model of a configuration, without arrays."""
        ...

    def base(self, config: ConfigDict) -> ConfigDict:
        """The configuration of an export: where fine-tuning stores a model otherwise, without."""
        ...

    def merged(self, config: ConfigDict, source: Weights) -> tuple[Weights, tuple[str, ...]]:
        """The weights of a run as those of `base(config)`, and notes on the way there."""
        ...

    def layout(
        self, config: ConfigDict, kind: str, names: str = "auto", dtype: str = "float32"
    ) -> Layout:
        """The table of an export to, or import from, `kind` in the names of a library."""
        ...

    def check_size(self, config: ConfigDict) -> None:
        """Refuses a configuration from a file whose model would take for ever to build."""
        ...

    def open_foreign(self, kind: str, path: Path, strip: str = "") -> Foreign:
        """Opens weights of another library; `strip` is taken off the beginning of their names."""
        ...

    def beside(self, config: ConfigDict, workdir: Path, step: int) -> dict[str, str]:
        """Files of a run that an export takes along: name -> text."""
        ...

    def subject(self, config: ConfigDict, form: str, beside: Mapping[str, str]) -> Subject:
        """What the model card of an export says of the model; `form` is that of its layout, or
        "stablehlo"; `beside` are files of the export, name -> text.
        """
        ...

    def to_import(self, config: ConfigDict, path: Path, names: Path | None) -> dict[str, str]:
        """Files that an import writes beside its weights: name -> text."""
        ...

    def serving(self, config: ConfigDict) -> Serving:
        """The evaluation forward, its inputs by name as (shape, dtype), and facts on them."""
        ...

    def compare(self, config: ConfigDict, params: Arrays, path: Path) -> str:
        """A line with the largest difference of the logits to those of the other library."""
        ...


class Preparing(Protocol):
    """`prepare`: reads a data set once and keeps it in the form that training reads."""

    def run(
        self,
        config: ConfigDict,
        *,
        splits: Sequence[str] = ...,
        workers: int = ...,
        part: tuple[int, int] = ...,
        tasks: Path | None = ...,
        verify: bool = ...,
    ) -> int:
        """Prepares the sources of a configuration; returns the exit code."""
        ...


class Checking(Protocol):
    """`prepare --check`: looks through a data set and prints what is wrong with it."""

    def run(self, config: ConfigDict, boxes: Path | None = ...) -> int:
        """Checks the data set of a configuration, and draws a few images with their boxes into a
        directory; returns the exit code.
        """
        ...


class Analysing(Protocol):
    """`analyse`: says what the parts of a model took to be theirs."""

    @property
    def Request(self) -> Callable[..., Any]:
        """What to analyse."""
        ...

    def run(
        self, config: ConfigDict, workdir: Path, request: Any, at_step: int | None = None
    ) -> dict[str, Any]:
        """Writes a report, prints its headline and returns its figures."""
        ...


class Family(Protocol):
    """A family of models: its roles, each imported when it is first asked for."""

    @property
    def name(self) -> str:
        """The value of `family` in a configuration."""
        ...

    @property
    def config(self) -> Settings: ...

    @property
    def plan(self) -> Planning: ...

    @property
    def objective(self) -> Objective: ...

    def open_split(self, config: ConfigDict, split: str) -> Source:
        """Opens a split of the data set of a configuration."""
        ...

    @property
    def train(self) -> Training: ...

    @property
    def evaluate(self) -> Evaluating: ...

    @property
    def predict(self) -> Predicting: ...

    @property
    def samples(self) -> Sampling: ...

    def request(self, args: Namespace, fail: Fail) -> Any:
        """What the flags of `launch.predict` ask `predict` for; `fail` refuses flags that this
        family does not take.
        """
        ...

    @property
    def describe(self) -> Describing: ...

    @property
    def interop(self) -> Interop: ...

    @property
    def prepare(self) -> Preparing | None:
        """None where data sets are read as they are."""
        ...

    @property
    def check(self) -> Checking | None:
        """None where data sets are checked as they are prepared."""
        ...

    @property
    def analyse(self) -> Analysing | None:
        """None where models have no router."""
        ...
