"""Rows of our own time against a peer's, each a command that measures both in one process.

    python -m benchmarks.peers              # what there is
    python -m benchmarks.peers all          # runs each in a process of its own, and prints a table
    python -m benchmarks.peers.vision_step  # one of them

Every row checks first that both sides compute the same thing, then times them by CPU time of one
pinned thread in interleaved rounds (`benchmarks.harness.timing`), prints the ratio last and exits
with 1 if a goal is missed. The peers come with `pip install -e '.[bench]'`.
"""
