"""Verdicts -> Markdown and pictures."""
