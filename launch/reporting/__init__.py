"""One page on a run, or on several over each other, for `launch.report --html`."""
