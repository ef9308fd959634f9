"""Which form of a function a program gets: the kernel, its interpreter, or the plain one."""

import jax
import jax.numpy as jnp
import pytest

from trainlib.errors import ConfigError
from trainlib.sharding.constrain import lowered_for
from trainlib.sharding.kernels import kernel_mode, use_kernels


@pytest.mark.parametrize(
    ("platform", "choice", "mode"),
    [
        ("tpu", "auto", "compiled"),
        ("tpu", "plain", None),
        ("tpu", "interpret", "interpret"),
        ("cpu", "auto", None),
        ("cpu", "plain", None),
        ("cpu", "interpret", "interpret"),
        ("gpu", "auto", None),
    ],
)
def test_platform_and_choice_decide(platform, choice, mode):
    with lowered_for(platform), use_kernels(choice):
        assert kernel_mode() == mode


def test_a_jitted_function_is_traced_anew_for_another_choice():
    @jax.jit
    def which(x):
        return x + (1 if kernel_mode() else 0)

    seen = []
    for choice in ("plain", "interpret", "auto", "plain"):
        with use_kernels(choice):
            seen.append(float(which(jnp.zeros(()))))
    assert seen == [0, 1, 0, 0]


def test_another_choice_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="plain"):
        use_kernels("plian")
