"""Where the routers of a run send tokens, for `launch.analyse`."""
