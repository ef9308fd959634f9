"""Rows sent between devices: where they land, against a simulation in NumPy of what JAX documents
of `jax.lax.ragged_all_to_all`; values and gradients on simulated devices.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from moe.exchange.dropless import Window, placed, rounds, routes, share, window
from moe.exchange.ragged import Slices, Way, collect, exchange, spread
from trainlib.sharding.mesh import make_mesh

N, E, TOKENS = 4, 3, 11  # devices, experts of each, choices of each


def counts_of(rng, kind):
    """int32 [n, n, e] by source, device and expert."""
    if kind == "one expert":
        expert = np.full((N, TOKENS), 4)
    elif kind == "nothing":
        return np.zeros((N, N, E), np.int32)
    else:
        expert = rng.integers(0, N * E + 1, (N, TOKENS))  # some choices are not sent
    hot = expert[..., None] == np.arange(N * E)
    return hot.sum(1).astype(np.int32).reshape(N, N, E)


def simulated(rows, sends, length):
    """What the operation does, slice by slice: rows [n][N, D] -> [n][length, D]."""
    out = [np.zeros((length, rows[0].shape[1]), rows[0].dtype) for _ in rows]
    for source, send in enumerate(sends):
        for sink, (starts, sizes, there) in enumerate(zip(*send, strict=True)):
            for start, size, to in zip(starts, sizes, there, strict=True):
                assert 0 <= to <= to + size <= length
                assert not out[sink][to : to + size].any()  # nothing is overwritten
                out[sink][to : to + size] = rows[source][start : start + size]
    return out


WINDOWS = [
    Window(4, True, 4, N * 4),
    Window(7, False, 7, 7),
    Window(TOKENS, True, TOKENS, N * TOKENS),
    Window(N * TOKENS, False, TOKENS, N * TOKENS),
]


@pytest.mark.parametrize("kind", ["random", "one expert", "nothing"])
@pytest.mark.parametrize("of", WINDOWS, ids=str)
@pytest.mark.parametrize("align", [1, 4])
def test_every_row_arrives_once_by_expert_and_returns(kind, of, align):
    rng = np.random.default_rng(0)
    counts = counts_of(rng, kind)
    number = int(rounds(jnp.asarray(counts), of))
    # A row says whose it is: (source, expert, which of them); all are nonzero.
    rows = []
    for source in range(N):
        named = [
            (source + 1, expert + 1, i + 1)
            for expert, count in enumerate(counts[source].reshape(-1))
            for i in range(count)
        ]
        rows.append(np.array(named + [(0, 0, 0)] * (TOKENS - len(named)), np.int32))
    home = [np.zeros_like(one) for one in rows]
    length = of.arriving + E * (align - 1)
    assert number <= -(-N * TOKENS // of.rows)
    for turn in range(number):
        chosen = share(jnp.asarray(counts), of, turn)
        ways = [jax.device_get(routes(jnp.asarray(counts), chosen, me, align)) for me in range(N)]
        sends, receives = zip(*ways, strict=True)
        for me, other in itertools.product(range(N), repeat=2):
            assert (sends[me].sizes[other] == receives[other].sizes[me]).all()
            assert (sends[me].there[other] == receives[other].starts[me]).all()
            assert sends[me].sizes[other].sum() <= of.pair
        arrived = simulated(rows, sends, length)
        for me in range(N):
            taken = np.asarray(chosen.taken)[:, me]
            _, starts = jax.device_get(placed(jnp.asarray(taken), align))
            assert taken.sum() <= of.arriving
            assert (starts % align == 0).all()
            for expert, (start, size) in enumerate(zip(starts, taken.sum(0), strict=True)):
                assert (arrived[me][start : start + size, 1] == me * E + expert + 1).all()
        for one, back in zip(home, simulated(arrived, receives, TOKENS), strict=True):
            assert not (one.any(1) & back.any(1)).any()  # no row comes in two rounds
            one += back
    np.testing.assert_array_equal(home, rows)


def test_what_is_sent_is_what_is_chosen():
    """Rows over the mesh: one for each choice that is sent, in each direction."""
    counts = counts_of(np.random.default_rng(1), "random")
    of = window(TOKENS, TOKENS, N, float(N), by_pair=False)
    chosen = share(jnp.asarray(counts), of, 0)
    sent = [routes(jnp.asarray(counts), chosen, me, 1)[0].sizes.sum() for me in range(N)]
    assert [int(one) for one in sent] == counts.sum((1, 2)).tolist()


def test_a_window_holds_no_more_than_can_come():
    """16 tokens of 2 choices on 4 devices; with one expert each, a token goes to a device once."""
    assert window(32, 16, 4, 1.5, by_pair=False) == Window(48, False, 16, 48)
    assert window(32, 16, 4, 8.0, by_pair=False) == Window(64, False, 16, 64)
    assert window(32, 16, 4, 1.5, by_pair=True) == Window(12, True, 12, 48)
    assert window(32, 16, 4, 8.0, by_pair=True) == Window(16, True, 16, 64)


def on_devices(fn):
    """A function of one device's parts, on arrays with a leading dimension of N devices."""
    mesh = make_mesh(1, N, 1, devices=jax.devices()[:N])

    def local(*args):
        return jax.tree.map(lambda y: y[None], fn(*jax.tree.map(lambda x: x[0], args)))

    split = P("data")
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=split, out_specs=split))


@pytest.mark.parametrize("seed", range(3))
def test_exchanged_values_and_gradients(seed):
    """Against the simulation; the gradient is the transpose: <A x, y> = <x, A^T y>, exactly for
    whole numbers.
    """
    rng = np.random.default_rng(seed)
    counts = jnp.asarray(counts_of(rng, "random"))
    of = Window(TOKENS, True, TOKENS, N * TOKENS)
    chosen = share(counts, of, 0)
    ways = [routes(counts, chosen, me, 2) for me in range(N)]
    send, receive = (
        Slices(*map(jnp.stack, zip(*side, strict=True))) for side in zip(*ways, strict=True)
    )
    way = Way("data", TOKENS, of.arriving + E, TOKENS)
    rows = rng.integers(1, 9, (N, TOKENS, 2)).astype(np.float32)
    dy = rng.integers(-9, 9, (N, way.after, 2)).astype(np.float32)

    def run(rows, send, receive, dy):
        y, pull = jax.vjp(lambda rows: exchange(rows, send, receive, way), rows)
        return y, pull(dy)[0]

    y, drows = jax.device_get(on_devices(run)(rows, send, receive, dy))
    sends = [jax.device_get(one) for one, _ in ways]
    np.testing.assert_array_equal(y, simulated(rows, sends, way.after))
    assert np.vdot(y, dy) == np.vdot(rows, drows)


@pytest.mark.parametrize("first", [spread, collect])
def test_spread_and_collect_are_transposes(first):
    """Every device's rows go to all, by expert; what all make of them is added up at home."""
    rng = np.random.default_rng(2)
    sizes = rng.integers(0, 4, (N, E)).astype(np.int32)
    starts = np.cumsum(sizes, 1).astype(np.int32) - sizes
    length, room = int(sizes.sum(1).max()), int(sizes.sum()) + E
    into, _ = placed(jnp.asarray(sizes), 2)
    each = functools.partial(np.broadcast_to, shape=(N, N, E))
    send = Slices(*(jnp.asarray(each(np.asarray(v)[:, None])) for v in (starts, sizes, into)))
    receive = Slices(*(jnp.asarray(each(np.asarray(v)[None])) for v in (into, sizes, starts)))
    way = Way("data", length, room, length)
    shape = {spread: (length, room), collect: (room, length)}[first]
    rows, dy = (rng.integers(-9, 9, (N, n, 2)).astype(np.float32) for n in shape)

    def run(rows, send, receive, dy):
        y, pull = jax.vjp(lambda rows: first(rows, send, receive, way), rows)
        return y, pull(dy)[0]

    y, drows = jax.device_get(on_devices(run)(rows, send, receive, dy))
    assert np.vdot(y, dy) == np.vdot(rows, drows)
    if first is spread:
        whole = np.zeros((room, 2), np.float32)
        for source, expert in itertools.product(range(N), range(E)):
            one = slice(starts[source, expert], starts[source, expert] + sizes[source, expert])
            to = int(into[source, expert])
            whole[to : to + sizes[source, expert]] = rows[source, one]
        np.testing.assert_array_equal(y, [whole] * N)
