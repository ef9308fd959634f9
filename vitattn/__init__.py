"""Convolutional networks with self-attention (arXiv 1904.09925, 1906.05909): layers, models,
images, training, evaluation, prediction.
"""
