"""Augmentations beyond crop, flip and colour: off unless a configuration asks for them."""
