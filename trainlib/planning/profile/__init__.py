"""A ledger as people read it: a table for terminals, and a page for browsers."""
