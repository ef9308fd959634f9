"""What both model families share: mesh, sharding, state, step, optimisers, checkpoints, metrics,
progress.

Nothing here knows a model; nothing here imports `vitattn`, `moe`, `configs` or `launch`.
"""
# A package of vitattn-moe.
