"""Correctness: oracles, properties, bad input, and the plugin in runs of its own."""
