"""Attention of blocks of queries to a square of keys around them, on the matrix unit.

geometry   sizes of blocks, squares and tiles, and the constant arrays that follow from them
shift      rows of a tile moved by a number of its own for each lane
squares    cutting blocks and squares out of a padded image, and adding them back
forward    the kernel of the result
backward   the kernel of the five gradients
attention  both as one function with a gradient, on [B, H, W, N, d]
"""
