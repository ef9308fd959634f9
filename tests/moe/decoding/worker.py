"""One of the processes that answer questions together: started by `test_hosts`.

python worker.py PORT INDEX COUNT
"""

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[3]))

from tests.compiler import flags  # noqa: E402


def main(port: str, index: int, count: int) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = flags(4 // count)
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    from moe.decoding.waiting import in_order
    from tests.moe.decoding.test_continuous import answerer_of, make_plan, mixed

    plan, weights = make_plan((1, 2, 2), 4)
    found = in_order(answerer_of(plan).results(weights, mixed()))
    print(json.dumps([one["words"].ravel().tolist() for one in found]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
