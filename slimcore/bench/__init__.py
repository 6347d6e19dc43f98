"""Measuring generation: cells, how they are timed, judged, stored and shown."""
