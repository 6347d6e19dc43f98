"""Measured and accepted -> verdicts."""
