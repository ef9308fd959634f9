"""The tables and figures of all papers, of both families."""
