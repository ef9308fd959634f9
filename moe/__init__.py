"""Sparse mixture-of-experts encoder-decoders: ST-MoE (arXiv 2202.08906), Switch (2101.03961), T5
v1.1.
"""
