"""Whether a router is right: its rules in NumPy, cases as files, verdicts about other routers."""
