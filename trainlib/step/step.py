"""The train step and the evaluation step, for any model that is a loss function.

One train step: split the batch into microbatches, sum gradients weighted by how many examples each
holds, clip, update, move the running statistics once, skip all of it when it is not finite, move
the weight average. All of it is one jitted function with pinned shardings and a donated state; keys
come from (seed, step, microbatch), so a resumed run draws the same numbers. What calls what:

    jit -> on_mesh (sets the mesh) -> step -> _gradients -> loss_of -> the loss of the family
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trainlib.model import statistics
from trainlib.model.statistics import Moments
from trainlib.model.weights import Arrays
from trainlib.sharding.compiler import options
from trainlib.sharding.constrain import activate, platform
from trainlib.sharding.kernels import use_kernels
from trainlib.sharding.rules import Rules, batch_sharding
from trainlib.step.ema import ema_update
from trainlib.step.plan import Plan
from trainlib.step.train_state import TrainState

Batch = dict[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (total, count); a metric is total / count


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tally:
    """What a batch counted for a state that a step moves once, such as the bias of a router.

    Attributes:
      total: of the batch; those of microbatches are added up.
      move: (the state, the total of the whole batch) -> the new state; a value that compares equal
        to others of its kind, such as a frozen dataclass.
    """

    total: jax.Array
    move: Callable[[jax.Array, jax.Array], jax.Array] = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class LossOutput:
    """What a loss function returns beside the scalar it is differentiated in.

    Attributes:
      count: f32 scalar, how many examples (or tokens) `loss` is the mean of.
      model_state: what the loss keeps from batch to batch; each microbatch gets what the one before
        it left. Running statistics and what has a tally, which the step moves, stay in it as they
        are.
      metrics: name -> (total, count), summed over microbatches and devices.
      moments: layer -> what it saw, for the running statistics.
      tallies: name in `model_state` -> what moves it.
    """

    count: jax.Array
    model_state: Arrays
    metrics: Sums
    moments: Mapping[str, Moments] = dataclasses.field(default_factory=dict)
    tallies: Mapping[str, Tally] = dataclasses.field(default_factory=dict)


jax.tree_util.register_dataclass(LossOutput)

LossFn = Callable[[Arrays, Arrays, Batch, jax.Array], tuple[jax.Array, LossOutput]]


def _split(batch: Batch, parts: int) -> Batch:
    # Row i goes to microbatch i % parts, so every device keeps its own rows and nothing moves.
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )


def _gradients(
    loss_fn: LossFn, params: Arrays, model_state: Arrays, batch: Batch, key: jax.Array, parts: int
) -> tuple[jax.Array, Arrays, LossOutput]:
    """Weighted mean loss, its gradient in `params`, and what the loss gives beside it; whole
    batch.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if parts == 1:
        (loss, out), grads = grad_fn(params, model_state, batch, key)
        return loss, grads, out

    def body(carry, microbatch):
        total_loss, total_count, total_grads, carried = carry
        index, part = microbatch
        (loss, out), grads = grad_fn(params, carried, part, jax.random.fold_in(key, index))
        grads = jax.tree.map(lambda t, g: t + g * out.count, total_grads, grads)
        carry = total_loss + loss * out.count, total_count + out.count, grads, out.model_state
        return carry, (out.metrics, out.moments, out.tallies)

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero, jax.tree.map(jnp.zeros_like, params), model_state)
    microbatches = (jnp.arange(parts), _split(batch, parts))
    carry, reports = jax.lax.scan(body, start, microbatches)
    (loss, count, grads, model_state), (metrics, moments, tallies) = carry, reports
    scale = 1.0 / jnp.maximum(count, 1.0)
    grads = jax.tree.map(lambda g: g * scale, grads)
    metrics, tallies = jax.tree.map(lambda x: x.sum(0), (metrics, tallies))
    moments = {layer: statistics.merge(seen) for layer, seen in moments.items()}
    return loss * scale, grads, LossOutput(count, model_state, metrics, moments, tallies)


def _parted(params: Arrays, trained: Collection[str] | None) -> tuple[Arrays, Arrays]:
    """Weights that learn, weights that do not."""
    if trained is None:
        return params, {}
    learned = {name: value for name, value in params.items() if name in trained}
    return learned, {name: value for name, value in params.items() if name not in trained}


def _if(finite: jax.Array, updated: Callable[[], Any], before: Any) -> Any:
    """What `updated` returns, or `before` where `finite` (bool scalar) is false.

    A branch on a CPU, where choosing every number makes each fused loop test the scalar and copy
    the weight that it replaces: half as many copies, a fifth less to compile. Accelerators choose,
    since a branch there keeps the update from beginning before the check has ended.
    """
    if platform() == "cpu":
        return jax.lax.cond(finite, updated, lambda: before)
    after = updated()
    with jax.named_scope("optimizer"):
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)


def norms_of(grads: Arrays, watched: Mapping[str, tuple[str, ...]]) -> Sums:
    """Metric -> (norms of the gradient [n], ones [n]), one for each index of the first axis of the
    weights that it names, one weight after the other; none of weights that do not learn.
    """

    def norms(grad: jax.Array) -> jax.Array:
        rest = tuple(range(1, grad.ndim))
        return jnp.sqrt(jnp.sum(jnp.square(grad.astype(jnp.float32)), axis=rest))

    found = {
        metric: jnp.concatenate([norms(grads[name]) for name in names])
        for metric, names in watched.items()
        if all(name in grads for name in names)
    }
    return {metric: (values, jnp.ones_like(values)) for metric, values in found.items()}


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    microbatches: int = 1,
    ema_decay: float = 0.0,
    trained: Collection[str] | None = None,
    gradient_norms: Mapping[str, tuple[str, ...]] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """Builds the pure train step `(state, batch) -> (state, metrics)`.

    Args:
      loss_fn: `(params, model_state, batch, key) -> (mean loss, LossOutput)`.
      optimizer: an optax transformation over the flat dictionary of weights.
      seed: with the step number it gives every random key.
      microbatches: how many pieces the batch is cut into. The step is that of the whole batch where
        the loss of a row depends on this row alone; batch normalisation normalises each piece by
        the statistics of this piece, which is another function. Running statistics move once, by
        those of all pieces together.
      ema_decay: decay of the moving average of weights; 0 turns it off.
      trained: names of the weights that learn (`optimizers.trained_names`); None is all. The others
        are not differentiated: what lies before the first trained weight has no backward pass, and
        `grad_norm` does not count them. Running statistics are no weights: those of frozen parts
        follow the batches as ever.
      gradient_norms: see `Plan`.

    The metrics gain `loss`, `grad_norm`, `skipped` (updates left out so far because they were not
    finite) and `skipped_in_row` (those of them in a row up to this step).
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        learned, fixed = _parted(state.params, trained)

        def loss_of(learned: Arrays, *rest: Any) -> tuple[jax.Array, LossOutput]:
            return loss_fn(learned | fixed, *rest)

        loss, grads, out = _gradients(loss_of, learned, state.model_state, batch, key, microbatches)
        with jax.named_scope("gradient_norm"):
            norm = optax.global_norm(grads)
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            norms = norms_of(grads, gradient_norms or {})

        def updated() -> tuple[Any, ...]:
            with jax.named_scope("optimizer"):
                updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
                params = cast(Arrays, optax.apply_updates(state.params, updates))
            with jax.named_scope("running_statistics"):
                moved, counts = statistics.follow(out.model_state, state.counts, out.moments)
                for name, tally in out.tallies.items():
                    moved[name] = tally.move(moved[name], tally.total)
            ema = state.ema
            if ema_decay:
                with jax.named_scope("weight_average"):
                    ema = ema_update(ema, {**params, **moved}, ema_decay, state.step)
            return params, opt_state, moved, counts, ema

        before = state.params, state.opt_state, state.model_state, state.counts, state.ema
        params, opt_state, moved, counts, ema = _if(finite, updated, before)
        bad = (~finite).astype(jnp.int32)
        skipped = jnp.stack([state.skipped[0] + bad, (state.skipped[1] + bad) * bad])
        one = jnp.ones((), jnp.float32)
        metrics = {
            **out.metrics,
            **norms,
            "loss": (loss.astype(jnp.float32), one),
            "grad_norm": (norm.astype(jnp.float32), one),
            "skipped": (skipped[0].astype(jnp.float32), one),
            "skipped_in_row": (skipped[1].astype(jnp.float32), one),
        }
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            model_state=moved,
            opt_state=opt_state,
            ema=ema,
            skipped=skipped,
            counts=counts,
        )
        return new_state, metrics

    return step


def compile_train(loss_fn: LossFn, plan: Plan[Any]) -> Any:
    """The jitted train step of a plan, `(state, batch) -> (state, sums)`, which moves the weights
    down the gradient of `loss_fn`. It compiles when it is first called.

    Reads `seed`, `microbatches` and `ema_decay`.
    """
    config = plan.config
    train_step = make_train_step(
        loss_fn,
        plan.optimizer,
        seed=config.seed,
        microbatches=config.microbatches,
        ema_decay=config.ema_decay,
        trained=None if plan.trained == set(plan.abstract.params) else plan.trained,
        gradient_norms=plan.gradient_norms,
    )
    return compile_step(train_step, plan.shardings, plan.mesh, plan.rules, config.kernels)


def compile_step(
    step: Callable[[TrainState, Batch], tuple[TrainState, Sums]],
    shardings: TrainState,
    mesh: Mesh,
    rules: Rules,
    kernels: str = "auto",
) -> Any:
    """Jits a train step: pinned shardings, donated state, activation constraints on `mesh`.

    For `kernels` see `trainlib.sharding.kernels.use_kernels`.
    """

    def on_mesh(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        with activate(mesh, rules), use_kernels(kernels):
            return step(state, batch)

    split, whole = batch_sharding(rules, mesh), NamedSharding(mesh, P())
    return jax.jit(
        on_mesh,
        in_shardings=(shardings, split),
        out_shardings=(shardings, whole),
        donate_argnums=0,
        compiler_options=options(mesh),
    )


def compile_eval(evaluate: Callable[[Arrays, Arrays, Batch], Any], plan: Plan[Any]) -> Any:
    """Jits `(params, model_state, batch) -> sums`, or any tree of arrays, on the mesh of a plan."""

    def on_mesh(params: Arrays, model_state: Arrays, batch: Batch) -> Any:
        with activate(plan.mesh, plan.rules), use_kernels(plan.config.kernels):
            return evaluate(params, model_state, batch)

    return jax.jit(
        on_mesh,
        in_shardings=(plan.shardings.params, plan.shardings.model_state, plan.batch_sharding),
        out_shardings=NamedSharding(plan.mesh, P()),
        compiler_options=options(plan.mesh),
    )


def put_batch(batch: Mapping[str, Any], split: NamedSharding) -> Batch:
    """This process's part of a batch (NumPy) -> global arrays, split over the batch axes."""
    # Asked for, unlike what the loops forbid; over several processes JAX does not count it as such.
    with jax.transfer_guard_host_to_device("allow"):
        return {
            name: jax.make_array_from_process_local_data(split, value)
            for name, value in batch.items()
        }
