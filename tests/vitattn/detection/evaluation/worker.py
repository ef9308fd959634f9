"""One of the processes of an evaluation: started by `test_hosts`.

python worker.py PORT INDEX COUNT CLASSES: prints a digest of everything that was measured.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from tests.compiler import flags


def main(port: str, index: int, count: int, classes: int) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = flags(8 // count)
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    from tests.vitattn.detection.evaluation import pictures
    from vitattn.detection.evaluation.evaluation import over_split

    # The last of the batches of 8 holds padding, on more than one process.
    split, found = pictures.pictures(19, classes=classes)
    split.broken = (1,)
    plan = pictures.plan_of(batch_size=8)
    step = pictures.compiled(pictures.detector(split, found), plan)
    with jax.transfer_guard("disallow"):  # as in the loop of training
        result = over_split(step, {}, {}, split, plan)
    everything = json.dumps([result.record(), result.results()])
    print(hashlib.sha256(everything.encode()).hexdigest(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
