"""A run of several processes without a model, to be killed, stopped and delayed, and its starter.

As a program it is one process: it joins, and in every step adds up one number over all processes.
`--fault=I:STEP:KIND[:SECONDS]` makes process I sleep, hang until its watchdog ends it (whose limits
are SECONDS from then on, so that nothing depends on how long the start took), raise a bug, or raise
an expected error; step 0 is before the loop.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from tests.compiler import flags  # noqa: E402


def main(argv):
    from launch import cli
    from launch.hosts.find import add_flags
    from launch.hosts.run import run_on_all_hosts
    from trainlib.config import COMMON, from_schema, override

    parser = cli.parser("hosts", "")
    add_flags(parser)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--fault", default="-1:0:none")
    args, overrides = cli.parse(parser, argv)
    config = from_schema(COMMON)
    for key, value in overrides.items():
        override(config, key, value, "command line")
    return run_on_all_hosts(args, config, lambda: train(args))


def train(args):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from trainlib.errors import DataError, Preempted
    from trainlib.run import peers, watchdog
    from trainlib.run.interrupt import StopRequest
    from trainlib.run.progress import Progress
    from trainlib.sharding.mesh import make_mesh

    mesh = make_mesh()
    rows = NamedSharding(mesh, P("data"))
    add = jax.jit(jnp.sum, in_shardings=rows, out_shardings=NamedSharding(mesh, P()))
    index, (who, step, kind, *rest) = jax.process_index(), args.fault.split(":")
    progress = Progress(args.steps, enabled=False)

    def fault(number):
        if (index, number) == (int(who), int(step)):
            if kind == "sleep":
                time.sleep(float(rest[0]))
            elif kind == "hang":
                hang(float(rest[0]))
            elif kind == "bug":
                raise ValueError("a bug in one process")
            elif kind == "data":
                raise DataError("shard 3 is not there")

    def hang(seconds):
        watched = watchdog._watchdog
        assert watched is not None
        watched._limits, watched._least = dict.fromkeys(watchdog.LIMITS, seconds), seconds
        time.sleep(600)

    fault(0)
    with watchdog.follow(progress.beat), StopRequest() as stop:
        for number in range(1, args.steps + 1):
            fault(number)
            values = np.full(jax.local_device_count(), number + index, np.float32)
            total = add(jax.make_array_from_process_local_data(rows, values))
            print(f"step {number} {float(total):g}", flush=True)
            progress.update(number)
            if number < args.steps and peers.stopping(number, stop.requested):
                raise Preempted(f"Stopped after step {number}.")
            time.sleep(0.02)
    return 0


# ---------------------------------------------------------------- the side of the tests


def free_port():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def environment(**extra):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_", "JAX_"))}
    return env | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags(1)} | extra


class Hosts:
    """Processes of one run, of this module or of `launch.train`; their output goes to files.

    Args:
      folder: where the output goes.
      count: processes to be told of; `started` of them are started.
      arguments: for all; a callable gets the number of the process.
    """

    def __init__(self, folder, count, *arguments, started=None, module=None, env=None):
        port = free_port()
        self.folder, self.processes = folder, []
        program = [__file__] if module is None else ["-m", module]
        for index in range(count) if started is None else started:
            own = [a(index) if callable(a) else a for a in arguments]
            flags = [f"--coordinator=localhost:{port}", f"--processes={count}"]
            with open(folder / f"{index}.out", "w") as out, open(folder / f"{index}.err", "w") as e:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *program, *flags, f"--process={index}", *own],
                        cwd=ROOT,
                        env=env or environment(),
                        stdout=out,
                        stderr=e,
                    )
                )

    def output(self, index):
        return (self.folder / f"{index}.out").read_text()

    def error(self, index):
        return (self.folder / f"{index}.err").read_text()

    def steps(self, index):
        return self.output(index).count("\nstep") + self.output(index).startswith("step")

    def until(self, step, seconds=1200):
        """Waits until every process has printed `step` steps."""
        deadline = time.monotonic() + seconds
        while any(self.steps(i) < step for i in range(len(self.processes))):
            broken = [p.poll() for p in self.processes]
            assert not any(broken), (broken, [self.error(i) for i in range(len(broken))])
            assert time.monotonic() < deadline, "no such step"
            time.sleep(0.05)

    def wait(self, *indices, seconds=1200):
        """Exit codes of some processes (none named: all) and the seconds until the last ended."""
        began = time.monotonic()
        chosen = [self.processes[i] for i in indices] if indices else self.processes
        codes = [p.wait(max(0.1, began + seconds - time.monotonic())) for p in chosen]
        return codes, time.monotonic() - began

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


if __name__ == "__main__":
    from launch import cli

    cli.run(main)
