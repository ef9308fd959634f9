"""Attention as pure functions of arrays: what layers compute, by tiles that fit the machine."""
