"""Several runs side by side, for `launch.report`."""
