"""What the outputs of a model stand for: names of classes, by which labels are matched."""
