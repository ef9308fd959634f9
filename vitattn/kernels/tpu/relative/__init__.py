"""2-D relative attention on a TPU.

shape    sizes of the tiles, and the constants that stand for positions
shift    rows moved by another number in every lane, and back
head     one head, all queries at once: forward and backward, as functions of arrays
tables   both tables in one array, as kernels read them
packed   attention of maps that lie packed: channels on sublanes, pixels on lanes
blocked  the same by blocks of keys and tiles of queries, for maps whose logits are too many: sizes
         are in blocks, kernels in blocked_forward and blocked_backward, what these share in
         blocked_terms and blocked_call
half     the augmented half of a convolution, projections included, a kernel a pass
"""
