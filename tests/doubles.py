"""Doubles that a worker process installs before it serves: engines that fail, hang, die, or take a told time.

`forked` starts workers from a process that has imported torch already, so that each is there at once, with doubles of
the test's choice. `copied` makes a copy of slimcore whose workers, real processes, install what DOUBLES says, a
list of calls as `takes(0.05); slower(22, 1, 0.1)`.
"""

import multiprocessing
import os
import random
import shutil
import signal
import time
from functools import partial, wraps
from itertools import count
from multiprocessing.reduction import DupFd
from pathlib import Path

ROOT = Path(__file__).parent.parent


def copied(into):
    """A copy of slimcore below `into` whose workers install the doubles of the environment's DOUBLES."""
    shutil.copytree(ROOT / "slimcore", into / "slimcore", ignore=shutil.ignore_patterns("__pycache__"))
    measure = into / "slimcore" / "bench" / "measure"
    shutil.copy(__file__, measure / "doubles.py")
    worker = measure / "worker.py"
    text = worker.read_text()
    install = 'from slimcore.bench.measure import doubles\n\n    exec(os.environ["DOUBLES"], vars(doubles))\n    '
    worker.write_text(text.replace("    server = Server(connection)\n", f"    {install}server = Server(connection)\n"))
    return into


class Forked:
    """Takes the place of `slimcore.bench.suite.workers.launch`."""

    def __init__(self):
        self.doubles = []  # functions without arguments, to be called in each worker that starts from now on
        self.started = 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.doubles", "tests.imported"])

    def __call__(self, _python, _root, settings, connection, errors):
        """Start a worker."""
        self.started += 1
        given = {"environment": dict(settings.environment), "cores": list(settings.cores)}
        process = self._context.Process(target=_serve, args=(connection, given, DupFd(errors.fileno()), self.doubles))
        process.start()
        return Process(process)


class Process:
    """A forked process, as the suite sees one."""

    def __init__(self, process):
        self._process = process
        self.pid = process.pid

    def wait(self):
        """Its exit code."""
        self._process.join()
        return self._process.exitcode


def _serve(connection, settings, errors, doubles):
    from slimcore.bench.measure import worker

    os.dup2(errors.detach(), 2)
    for install in doubles:
        install()
    worker.serve(connection, settings)


def _instead(kind, name):
    """Put the decorated function, which takes the original first, in the place of `kind.name`."""

    def put(function):
        original = getattr(kind, name)
        setattr(kind, name, wraps(original)(lambda *args, **kwargs: function(original, *args, **kwargs)))

    return put


def _before_generating(act):
    """Call `act` with model and ids before each generate of the engine eager."""
    from slimcore.bench.measure.engines.eager import Eager

    @_instead(Eager, "generate")
    def generate(original, self, ids, new_tokens, **options):
        act(self._model, ids)
        return original(self, ids, new_tokens, **options)


def raises(error, rows=1):
    """Each generate of so many rows, or more, raises `error`."""

    def act(_, ids):
        if len(ids) >= rows:
            raise error

    _before_generating(act)


def out_of_memory(rows=1, layers=None):
    """So many rows, or more, do not fit; where `layers` is given, only in models of so many."""
    import torch

    def act(model, ids):
        if len(ids) >= rows and layers in (None, model.config.num_hidden_layers):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")

    _before_generating(act)


def hangs(rows=1):
    """Each generate of so many rows, or more, never ends."""
    _before_generating(lambda _, ids: time.sleep(1e6) if len(ids) >= rows else None)


def dies(layers, rows=1, *, once=None):
    """Kills its process; with `once`, a file that is left, only the first time."""

    def act(model, ids):
        if model.config.num_hidden_layers != layers or len(ids) < rows or (once and Path(once).exists()):
            return
        if once:
            Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    _before_generating(act)


def no_room():
    """No model can be loaded."""
    import torch

    from slimcore.bench.measure import subject

    @_instead(subject, "load")
    def load(_original, *_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")


def keeps_memory():
    """After running out of memory, some does not come back."""
    from slimcore.bench.measure import memory

    figures = count(step=10**9)
    memory.allocated = lambda _device: next(figures)


_SLOWER = {}  # layers, rows -> share


def slower(layers, rows, share):
    """So many rows in models of so many layers take longer by such a share: see `takes`."""
    _SLOWER[layers, rows] = share


def takes(seconds):
    """No model runs: each generate takes so long by a clock of its own, and the canary is steady."""
    from slimcore.bench.measure.canary import Canary
    from slimcore.bench.measure.clocks import Timeline
    from slimcore.bench.measure.engines.eager import Eager

    due = [seconds]
    Canary.read = lambda _: [1e-3, 1e-3]

    @_instead(Eager, "generate")
    def generate(_original, self, ids, new_tokens, *, mark, **_):
        share = _SLOWER.get((self._model.config.num_hidden_layers, len(ids)), 0.0)
        due[0] = seconds * (1 + share) * random.uniform(1, 1.002)
        for _ in range(new_tokens):
            mark()
        return ids.new_zeros((ids.shape[0], ids.shape[1] + new_tokens))

    @_instead(Timeline, "seconds")
    def told(original, self):
        count = len(original(self))
        return [due[0] * (n + 1) / count for n in range(count)]


def really_slower(layers, share):
    """Models of so many layers generate as they do, and then wait for such a share of the time."""
    from slimcore.bench.measure.engines.eager import Eager

    @_instead(Eager, "generate")
    def generate(original, self, ids, new_tokens, *, mark, **options):
        last = [time.perf_counter()]

        def late():
            if self._model.config.num_hidden_layers == layers:
                due = time.perf_counter() + share * (time.perf_counter() - last[0])
                while time.perf_counter() < due:
                    pass
            mark()
            last[0] = time.perf_counter()

        return original(self, ids, new_tokens, mark=late, **options)


__all__ = [
    "Forked", "copied", "dies", "hangs", "keeps_memory", "no_room", "out_of_memory", "partial", "raises",
    "really_slower", "slower", "takes",
]  # fmt: skip
