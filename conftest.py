"""Registers the measuring plugin for both suites."""

pytest_plugins = ["slimcore.bench.suite.plugin", "pytester"]
