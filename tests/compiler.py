"""How programs are compiled for tests: quickly, because most of them run once.

Three quarters of the suite's time used to be XLA's. Without its optimisations, without the newer
emitter of fusions, which builds every loop through MLIR, and with one LLVM module for each program,
compilation costs a third. `make soak` and `make nightly` set the variable below, for the emitter
that users have.
"""

import os

VARIABLE = "VITATTN_MOE_TEST_COMPILER"
QUICK = os.environ.get(
    VARIABLE,
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)


def flags(devices: int) -> str:
    """XLA_FLAGS for a process with so many simulated CPU devices."""
    return f"--xla_force_host_platform_device_count={devices} {QUICK}"
