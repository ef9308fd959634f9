"""RetinaNet: parameters as published and as derived by hand, shapes, and what its parts compute."""

import pytest

from trainlib.model import weights as nn
from vitattn.models import build

LOCAL = {"kind": "local"}
AUGMENTED = {"kind": "augmented"}
TORCHVISION = {"num_scales": 3, "num_classes": 91, "pyramid_norm": "none"}


def count(**config):
    return nn.abstract(build({"name": "retinanet", **config})).param_count


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 33_420_404),
        ({"pyramid_norm": "none", "head_norm": "none"}, 33_397_364),
        ({"depth": 101}, 52_412_532),
        ({"num_scales": 3}, 34_070_414),
        ({"attention": LOCAL}, 25_878_876),
        ({"attention": LOCAL, "head_attention": "towers"}, 21_971_484),
        # Both forms of torchvision, as its documentation has them.
        (TORCHVISION | {"norm": "frozen", "head_norm": "none"}, 34_014_999),
        (TORCHVISION | {"head_norm": "group", "p6_from": "c5"}, 38_198_935),
    ],
)
def test_exact_parameters(config, expected):
    assert count(**config) == expected
