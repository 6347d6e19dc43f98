"""A package that somebody wants to stay fast."""

import os
import time


def step(name):
    """Take ten milliseconds; a third longer where SLOWER says this name."""
    time.sleep(0.0133 if os.environ.get("SLOWER") == name else 0.01)
