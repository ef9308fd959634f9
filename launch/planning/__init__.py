"""What `launch.compile` is asked for: a report, a profile, searches, comparisons, a function."""
