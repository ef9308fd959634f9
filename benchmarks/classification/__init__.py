"""What the input of classifiers costs."""
