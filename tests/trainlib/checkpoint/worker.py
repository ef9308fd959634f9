"""One of the processes of a run that saves, or that resumes: started by `test_hosts`.

python worker.py save|resume DIRECTORY PORT INDEX COUNT
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[3]))

from tests.compiler import flags  # noqa: E402


def main(task: str, directory: Path, port: str, index: int, count: int) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = flags(8 // count)
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    from tests.trainlib.checkpoint.states import make, shapes
    from trainlib.checkpoint.checkpoints import Checkpoints
    from trainlib.config import COMMON, from_schema
    from trainlib.run.resume import checkpoint_meta, resume
    from trainlib.sharding.mesh import make_mesh

    config = from_schema(COMMON)
    checkpoints = Checkpoints(directory)
    if task == "save":
        for step in (1, 2):
            state, _ = make(make_mesh(1, 4, 2), width=1024, seed=step)
            checkpoints.save(step, state, checkpoint_meta(config, {}))
            checkpoints.wait()
    else:
        like = shapes(make_mesh(2, 2, 2), width=1024)
        found = resume(checkpoints, config, (), lambda step: {}, like)
        print(f"resumed from {found.step if found else 0}", flush=True)
    checkpoints.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
