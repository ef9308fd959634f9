"""What a detector is worth: the figures of COCO over a split, on one host or many."""
