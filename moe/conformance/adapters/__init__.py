"""Adapters: what lies between the kit and the routers of several code bases."""
