"""Tables and figures of papers as data, for both families."""
