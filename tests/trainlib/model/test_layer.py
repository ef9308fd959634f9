"""Names of layers in programs: forward and backward, in lists, loops and methods; nothing else of a
program changes.
"""

from __future__ import annotations

import contextlib
import re

import jax
import jax.numpy as jnp
from flax import nnx

from trainlib.model.layer import Layer, name_in, named


class Scale(Layer):
    def __init__(self):
        self.factor = nnx.Param(jnp.full(3, 2.0))

    def __call__(self, x):
        """f32 [.., 3] -> the same."""
        return jnp.sin(x * self.factor[...])


class Net(Layer):
    def __init__(self):
        self.first, self.blocks = Scale(), nnx.List([Scale(), Scale()])

    def __call__(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x

    @named
    def twice(self, x):
        return self.first(self.first(x))


class Outer(Layer):
    def __init__(self):
        self.net, self.last = Net(), Scale()

    def __call__(self, x):
        return self.last(self.net(x))


class Plain(Scale, Layer):
    def __call__(self, x):
        return super().__call__(x)


def names(function, *inputs):
    """Scopes of the sines of a lowered program, and the cosines of their gradients."""
    text = jax.jit(function).lower(*inputs).as_text(debug_info=True)
    return set(re.findall(r'loc\("jit\([^)]*\)/(.*?)/(?:sin|cos)"', text))


X = jnp.ones((2, 3))


def test_a_call_is_named_by_the_attribute_that_holds_it():
    model = Outer()
    assert names(lambda x: model(x), X) == {"net/first", "net/blocks/0", "net/blocks/1", "last"}


def test_names_outlive_split_and_merge():
    graphdef, state = nnx.split(Outer())
    found = names(lambda state, x: nnx.merge(graphdef, state)(x), state, X)
    assert found == {"net/first", "net/blocks/0", "net/blocks/1", "last"}


def test_the_backward_pass_has_the_names():
    model = Outer()
    found = names(jax.grad(lambda x: model(x).sum()), X)
    assert "jvp(net)/blocks/1" in found
    text = jax.jit(jax.grad(lambda x: model(x).sum())).lower(X).as_text(debug_info=True)
    assert "transpose(jvp(net))/blocks/1/mul" in text


def test_a_named_method_names_its_layers():
    model = Net()
    assert names(lambda x: model.twice(x), X) == {"first"}
    assert names(lambda x: Net.__call__(model, x), X) == {"first", "blocks/0", "blocks/1"}


def test_a_layer_without_a_caller_and_one_that_is_no_attribute_have_no_name():
    assert names(lambda x: Plain()(x), X) == set()
    assert name_in(None, Scale()) == name_in(Net(), Scale()) == ""


def test_an_error_inside_leaves_no_caller_behind():
    class Broken(Layer):
        def __call__(self, x):
            raise ValueError(x)

    class Holder(Layer):
        def __init__(self):
            self.inner = Broken()

        def __call__(self, x):
            return self.inner(x)

    for _ in range(2):
        with contextlib.suppress(ValueError):
            Holder()(X)
    assert names(lambda x: Net()(x), X) == {"first", "blocks/0", "blocks/1"}


def test_names_are_all_that_changes():
    """The program without its locations is that of the same arithmetic in functions."""
    model = Net()

    def function(x):
        for layer in (model.first, *model.blocks):
            x = jnp.sin(x * layer.factor[...])
        return x

    def program(x):
        return model(x)

    program.__name__ = "function"
    texts = {jax.jit(one).lower(X).as_text() for one in (function, program)}
    assert len(texts) == 1
