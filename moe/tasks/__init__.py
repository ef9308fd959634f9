"""Fine-tuning tasks: a table of benchmarks, their records, and how these become text."""
