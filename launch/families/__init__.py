"""The families of models as the commands see them: two entries of one Protocol, which
`launch.families.protocol` holds.

A role is imported when it is asked for, so that `--help` loads none of them and a run on images
never imports what texts need.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from trainlib.errors import one_of

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from launch.families import protocol
    from launch.families.protocol import Family


class Vision:
    """Models of images, `vitattn`."""

    name = "vitattn"

    @property
    def config(self) -> protocol.Settings:
        from vitattn import config

        return config

    @property
    def plan(self) -> protocol.Planning:
        from vitattn import plan

        return plan

    @property
    def objective(self) -> protocol.Objective:
        from vitattn import objective

        return objective

    def open_split(self, config: ConfigDict, split: str) -> protocol.Source:
        from vitattn.task import task_of

        return task_of(config).make_source(config.data, split)

    @property
    def train(self) -> protocol.Training:
        from vitattn import train

        return train

    @property
    def evaluate(self) -> protocol.Evaluating:
        from vitattn import evaluate

        return evaluate

    @property
    def predict(self) -> protocol.Predicting:
        from vitattn import predict

        return predict

    @property
    def samples(self) -> protocol.Sampling:
        from vitattn.samples import images

        return images

    def request(self, args: Namespace, fail: protocol.Fail) -> Any:
        if not args.images:
            fail("there is no image: name image files or folders after the flags")
        if args.input or args.output:
            fail(f"{args.workdir} holds a run on images: name image files after the flags")
        if not args.attention and (args.layers or args.heads or args.query):
            fail("--layers, --heads and --query choose what --attention=PICTURE.png shows")
        if args.min_score is not None and not args.boxes:
            fail("--min_score says which boxes --boxes=DIR draws")
        from vitattn.predict import MIN_SCORE, Request

        return Request(
            images=args.images,
            class_names=args.class_names,
            as_json=args.json,
            attention=args.attention,
            layers=args.layers,
            heads=args.heads,
            query=args.query,
            boxes=args.boxes,
            min_score=MIN_SCORE if args.min_score is None else args.min_score,
        )

    @property
    def describe(self) -> protocol.Describing:
        from vitattn import describe

        return describe

    @property
    def interop(self) -> protocol.Interop:
        from vitattn.interop import torchvision

        return torchvision

    @property
    def prepare(self) -> protocol.Preparing | None:
        return None

    @property
    def check(self) -> protocol.Checking | None:
        from vitattn import check

        return check

    @property
    def analyse(self) -> protocol.Analysing | None:
        return None


class Language:
    """Models of text, `moe`."""

    name = "moe"

    @property
    def config(self) -> protocol.Settings:
        from moe import config

        return config

    @property
    def plan(self) -> protocol.Planning:
        from moe import plan

        return plan

    @property
    def objective(self) -> protocol.Objective:
        from moe import objective

        return objective

    def open_split(self, config: ConfigDict, split: str) -> protocol.Source:
        from moe.data import make_source

        return make_source(config.data, split)

    @property
    def train(self) -> protocol.Training:
        from moe import train

        return train

    @property
    def evaluate(self) -> protocol.Evaluating:
        from moe import evaluate

        return evaluate

    @property
    def predict(self) -> protocol.Predicting:
        from moe import predict

        return predict

    @property
    def samples(self) -> protocol.Sampling:
        from moe.samples import texts

        return texts

    def request(self, args: Namespace, fail: protocol.Fail) -> Any:
        if args.images or not args.input or not args.output:
            fail(
                f"{args.workdir} holds a run on texts: give --input=FILE.jsonl with the field "
                "`inputs` on every line, and --output=FILE.jsonl"
            )
        flags = ("class_names", "json", "attention", "layers", "heads", "query", "boxes")
        for flag in (*flags, "min_score"):
            if getattr(args, flag) not in (None, False, ()):
                fail(f"--{flag} is for images, and {args.workdir} holds a run on texts")
        from moe.predict import Request

        return Request(args.input, args.output)

    @property
    def describe(self) -> protocol.Describing:
        from moe import describe

        return describe

    @property
    def interop(self) -> protocol.Interop:
        from moe import interop

        return interop

    @property
    def prepare(self) -> protocol.Preparing | None:
        from moe import prepare

        return prepare

    @property
    def check(self) -> protocol.Checking | None:
        return None

    @property
    def analyse(self) -> protocol.Analysing | None:
        from moe import analyse

        return analyse


FAMILIES: tuple[Family, ...] = (Vision(), Language())


def by_name(name: str) -> Family:
    """The family of this name.

    Raises:
      ConfigError: there is none.
    """
    families = {family.name: family for family in FAMILIES}
    if name not in families:
        raise one_of("family", name, families)
    return families[name]


def of(config: ConfigDict) -> Family:
    """The family of a configuration."""
    return by_name(config.family)
