"""Attention kernels by the account of the TPU's compiler: `python -m benchmarks.attention`.

    cases      what a path is: a function of shapes, its floors and what it is to reach
    measure    what the ledger says of it
    augmented  2-D relative attention, and the halves of augmented convolutions around it
    windowed   layers of local attention
    detection  both on the maps of a detector
    t5         attention of T5 with its relative bias

A family of paths is a file with a list `CASES`.
"""
