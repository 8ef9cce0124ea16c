"""Tasks done by Dask workers, their results handed over as they are finished.

Workers share no disk with the caller: what a task needs travels with it, and its result comes
back. Dask itself moves functions and values between caller, scheduler and workers with pickle, so
whoever reaches the scheduler can run code: a cluster is for machines that trust one another. What
this package writes and reads as data is never a pickle.
"""

from __future__ import annotations

import importlib.metadata
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import citypaths
from citypaths.files import sha256

if TYPE_CHECKING:
    from distributed import Client

# A client, the address of a scheduler, "local" (workers on this machine, one a core), or no workers
Where: TypeAlias = "Client | str | None"

PATIENCE = 10.0  # seconds until a scheduler must have answered and a worker be there
AHEAD = 2  # tasks given out for each thread of a worker: one running, one next or coming back
PACKAGES = ("numpy", "scipy", "numba", "pyarrow")  # what may change a dataset's bytes


class ClusterError(RuntimeError):
    """A cluster that cannot be used; the message says why and what to do."""


def _distributed() -> ModuleType:
    """Dask.distributed, imported here and nowhere before."""
    try:
        import distributed
    except ImportError as error:
        raise ImportError(
            f"a cluster needs Dask ({error}): "
            'pip install "citypaths[cluster]", in a checkout pip install -e ".[cluster]"'
        ) from None
    return distributed


@contextmanager
def connected(where: Where) -> Iterator[Client | None]:
    """Yield a client with a worker at least, and close what was opened for it; None for None.

    Raises:
        ImportError: the extra is not installed; the message tells how.
        ClusterError: no scheduler answers, or no worker comes, within `PATIENCE` seconds.
    """
    if where is None:
        yield None
        return
    dask, client = _distributed(), where
    with ExitStack() as opened:
        if where == "local":
            local = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
            client = opened.enter_context(dask.LocalCluster(**local))
        if not isinstance(client, dask.Client):
            try:
                client = dask.Client(client, timeout=PATIENCE, set_as_default=False)
            except (OSError, ValueError) as error:
                what = f"no Dask scheduler answers at {where} ({error})"
                raise ClusterError(f"{what}: start one with `dask scheduler`") from None
            opened.enter_context(client)
        try:
            client.wait_for_workers(1, PATIENCE)
        except TimeoutError:
            address = client.scheduler.address
            what = f"the scheduler at {address} has no worker"
            raise ClusterError(f"{what}: start one with `dask worker {address}`") from None
        yield client


def spread(
    client: Client, function: Callable, jobs: Iterable[tuple], *shared: Any
) -> Iterator[Any]:
    """Yield `function(*shared, *job)` of every job in the order of finishing, done by workers.

    Few jobs at once are given out, so that unfetched results fill no memory. What a killed worker
    had in hand is done again by another; without any worker this waits for one to come.

    Args:
        function: a function of this package, found by its name on the workers too.
        shared: large values; they go to a worker once.

    Raises:
        ClusterError: the scheduler was lost, or a worker has other software. What the function
            raises on a worker is raised here.
    """
    jobs, waiting, task = iter(jobs), set(), None
    finished = _distributed().as_completed(loop=client.loop)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")
        # Results of a task, since those are made again when the workers that hold them are lost.
        held = [client.submit(_itself, value, pure=False) for value in shared]
    try:
        while True:
            room = max(1, AHEAD * sum(client.nthreads().values()))  # workers may join and leave
            for job in islice(jobs, max(0, room - len(waiting))):
                task = client.submit(_checked, software(), function, *held, *job, pure=False)
                waiting.add(task)
                finished.add(task)
            if not waiting:
                return
            task = next(finished)
            waiting.remove(task)
            result = task.result()
            task.release()
            yield result
    except (CancelledError, OSError) as error:
        if task is not None and task.status == "error":  # the function's own
            raise
        what = f"the scheduler is gone ({error}): what was finished is kept"
        raise ClusterError(f"{what}, the same call goes on from there") from None
    finally:
        for task in (*waiting, *held):
            task.release()


def _itself(value: Any) -> Any:
    return value


def _checked(expected: dict[str, str], function: Callable, *job: Any) -> Any:
    """Do one task, on a worker that has the caller's software."""
    if (mine := software()) != expected:
        other = ", ".join(
            f"{n} {mine[n]}, not {expected[n]}" for n in mine if mine[n] != expected[n]
        )
        raise ClusterError(
            f"a worker on {platform.node()} has other software ({other}): results could differ; "
            "install one checkout with constraints.txt everywhere and start the workers again"
        )
    return function(*job)


@cache
def software() -> dict[str, str]:
    """Return what decides a result besides its inputs: the source of this package, and versions.

    In a checkout also that of the notebooks' studies and of the commands.
    """
    library, houses = Path(citypaths.__file__).parents[1], ("citypaths", "studies", "commands")
    source = sorted(path for house in houses for path in (library / house).rglob("*.py"))
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"citypaths": sha256(*source)[:12]} | versions
