"""One file a result: `get_config(variant)` returns the resolved configuration; the docstring is the
claim.
"""
