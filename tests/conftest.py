"""What all tests share: warnings are errors, a byte tokenizer that needs no file, and the command line."""

import os
import sys

import pytest
from hypothesis import settings

from slimcore.cli import main
from tests import doubles
from tests.helpers import byte_tokenizer

collect_ignore = ["example_project"]  # run by test_example_project.py

# No deadline: machines are shared. In CI the examples are the same each time, so that a red run repeats.
settings.register_profile(
    "slimcore", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")), max_examples=60
)
settings.load_profile("slimcore")


def pytest_collection_modifyitems(items):
    """A warning in our own tests is a fault; in the performance suite it may be a newer library's."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error"), append=False)


@pytest.fixture(scope="session")
def tokenizer():
    """One token a byte, 256 of them, as the tiny models have rows."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def forked():
    """Starts workers of the performance suite as forks of a process that has imported torch."""
    return doubles.Forked()


@pytest.fixture
def prose(tmp_path):
    """A text file of some 20,000 bytes."""
    path = tmp_path / "prose.txt"
    path.write_text("".join(f"Sentence number {n} says little, and says it {n % 7} times. " for n in range(380)))
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process; return exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["slimcore", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return call
