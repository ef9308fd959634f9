"""`launch.reproduce`: tables and figures of the papers, and what reproduces each at which scale."""
