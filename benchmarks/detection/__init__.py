"""Detectors: what their input costs."""
