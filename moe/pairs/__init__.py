"""One's own tasks: files of inputs and targets, as examples to train on and to score."""
