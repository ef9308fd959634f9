"""The families of models, as the commands see them: two entries of one Protocol, `launch.families.protocol`.

A role is imported when it is asked for, so that `--help` loads none of them and a run on images
never imports what texts need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        from vitattn.classification import objective

        return objective

    @property
    def data(self) -> protocol.Data:
        from vitattn import data

        return data

    @property
    def train(self) -> protocol.Training:
        from vitattn import train

        return train

    @property
    def evaluate(self) -> protocol.Evaluating:
        from vitattn import evaluate

        return evaluate

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

    @property
    def data(self) -> protocol.Data:
        from moe import data

        return data

    @property
    def train(self) -> protocol.Training:
        from moe import train

        return train

    @property
    def evaluate(self) -> protocol.Evaluating:
        from moe import evaluate

        return evaluate

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


FAMILIES: tuple[Family, ...] = (Vision(), Language())


def by_name(name: str) -> Family:
    """The family that a configuration names; `configs.load` has checked the name."""
    return next(family for family in FAMILIES if family.name == name)


def of(config: ConfigDict) -> Family:
    """The family of a configuration."""
    return by_name(config.family)
