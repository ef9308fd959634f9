"""Scores of the fine-tuning tasks, by the definitions of the benchmarks."""
