"""The first state of a run that starts from the checkpoint of another."""
