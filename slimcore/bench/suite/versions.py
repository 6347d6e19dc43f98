"""Another version of slimcore, to be measured beside this one: a git ref unpacked, or a folder as it is."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from slimcore.errors import ResultsError

SERVES = Path("slimcore", "bench", "measure", "worker.py")


def checkout(root: Path, version: str, into: Path) -> tuple[Path, str]:
    """The folder that holds `version`, and its name; a git ref of `root` is unpacked below `into`.

    Raises ResultsError where it is neither folder nor ref, or both, or holds a slimcore that cannot be measured beside
    this one.
    """
    folder = Path(version)
    resolved = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{version}^{{commit}}")
    is_ref = resolved.returncode == 0
    if folder.is_dir() and is_ref and folder.name == version:
        raise ResultsError(
            f"{version!r} is both a folder and a git ref: say ./{version} for the folder, refs/heads/{version} for the"
            " branch"
        )
    if folder.is_dir():
        found, name = folder.resolve(), str(version)
    elif is_ref:
        commit = resolved.stdout.decode().strip()
        archive = _git(root, "archive", "--format=tar", commit, "slimcore")
        if archive.returncode:
            raise ResultsError(f"git archive {version}: {archive.stderr.decode().strip()}")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(into, filter="data")
        found, name = into.resolve(), f"{version} ({commit[:12]})"
    else:
        shallow = _git(root, "rev-parse", "--is-shallow-repository").stdout.strip() == b"true"
        more = "; this clone is shallow: git fetch --unshallow, then again" if shallow else ""
        raise ResultsError(f"{version!r} is neither a folder nor a git ref of {root}{more}")
    if not (found / SERVES).exists():
        raise ResultsError(f"{version} has no {SERVES}: only versions from it on are measured in turn")
    return found, name


def python_of(root: Path, ours: Path) -> str:
    """The Python of a version's own virtual environment, where it is not our folder and has one; else none."""
    own = root / ".venv" / "bin" / "python"
    return str(own) if own.exists() and root.resolve() != ours else ""


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(  # noqa: S603 - a ref is one argument, and never an option
            ["git", "-C", str(root), *arguments],  # noqa: S607 - git from the user's own PATH
            capture_output=True,
            check=False,
            timeout=120,
        )
    except OSError as error:
        raise ResultsError(f"git is needed to measure against a ref: {error}") from None
