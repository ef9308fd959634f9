"""Evaluation: the held-out split, and scores of the fine-tuning tasks by their benchmarks."""
