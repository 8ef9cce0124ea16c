"""Tasks in this process or on Dask workers, their results handed over as they are finished.

Workers share no disk with the caller: what a task needs travels with it, and its result comes
back. Dask itself moves functions and values between caller, scheduler and workers with pickle, so
whoever reaches the scheduler can run code: a cluster is for machines that trust one another. What
this package writes and reads as data is never a pickle.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import numba

from citypaths.map.graph import CityGraph, load_graph

if TYPE_CHECKING:
    from distributed import Client, Future

Where: TypeAlias = "Client | str | None"  # where tasks are done; see `connected`

PATIENCE = 10.0  # seconds until a scheduler must have answered and a worker be there
AHEAD = 2  # tasks given out for each thread of a worker: one running, one next or coming back
KEPT = 4  # graphs that a worker process keeps
PACKAGES = ("numpy", "scipy", "numba", "pyarrow")  # what may change a dataset's bytes


class ClusterError(RuntimeError):
    """A cluster that cannot be used; the message says why and what to do."""


def distributed() -> ModuleType:
    """Return dask.distributed, imported here and nowhere before.

    Raises:
        ImportError: the extra is not installed; the message tells how.
    """
    try:
        import distributed as module
    except ImportError as error:
        raise ImportError(
            f"a cluster needs Dask ({error}): "
            'pip install "citypaths[cluster]", in a checkout pip install -e ".[cluster]"'
        ) from None
    return module


@contextmanager
def connected(client: Where) -> Iterator[Client | None]:
    """Yield a client with a worker at least, and close what was opened for it.

    Args:
        client: a `distributed.Client` (left open), the address of a scheduler, "local" for
            workers on this machine, one a core, or None, which is yielded as it is.

    Raises:
        ImportError: the extra is not installed.
        ClusterError: no scheduler answers, or no worker comes, within `PATIENCE` seconds.
    """
    if client is None:
        yield None
    elif not isinstance(client, str):
        yield _with_a_worker(client)
    elif client == "local":
        local = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
        with distributed().LocalCluster(**local) as cluster, _open(cluster) as opened:
            yield _with_a_worker(opened)
    else:
        with _open(client) as opened:
            yield _with_a_worker(opened)


def _open(where: Any) -> Client:
    try:
        return distributed().Client(where, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        message = f"no Dask scheduler answers at {where} ({error}): start one with `dask scheduler`"
        raise ClusterError(message) from None


def _with_a_worker(client: Client) -> Client:
    try:
        client.wait_for_workers(1, PATIENCE)
    except TimeoutError:
        where = client.scheduler.address
        message = f"the scheduler at {where} has no worker: start one with `dask worker {where}`"
        raise ClusterError(message) from None
    return client


def spread(
    client: Client | None, function: Callable, jobs: Iterable[tuple]
) -> Iterator[tuple[tuple, Callable[[], Any]]]:
    """Do `function(*job)` for every job, here or on the workers, wherever one is free.

    Few jobs at once are given out, so that unfetched results fill no memory. What a killed worker
    had in hand is done again by another; without any worker this waits for one to come.

    Args:
        client: a client, or None for this process.
        function: a function of this package, found by its name on the workers too.

    Yields:
        The job, in the order of finishing, and a call that fetches its result. That call raises
        the function's error, or ClusterError for a cluster that was lost or has other software.
    """
    if client is None:
        yield from ((job, partial(function, *job)) for job in jobs)
        return
    jobs, waiting = iter(jobs), {}
    finished = distributed().as_completed(loop=client.loop)
    try:
        while True:
            for job in islice(jobs, max(0, _room(client) - len(waiting))):
                future = client.submit(_checked, software(), function, *job, pure=False)
                waiting[future] = job
                finished.add(future)
            if not waiting:
                return
            future = next(finished)
            yield waiting.pop(future), partial(_fetch, future)
    finally:
        for future in waiting:
            future.release()


def _room(client: Client) -> int:
    """How many tasks may be out: workers may join and leave, so it is asked every time."""
    try:
        return max(1, AHEAD * sum(client.nthreads().values()))
    except OSError as error:
        raise ClusterError(LOST.format(error)) from None


LOST = "the scheduler is gone ({}): what was finished is kept, the same call goes on from there"


def _fetch(future: Future) -> Any:
    try:
        return future.result()
    except (CancelledError, OSError) as error:
        if future.status == "error":  # the task's own
            raise
        raise ClusterError(LOST.format(error)) from None
    finally:
        future.release()


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
    """Return what decides a result besides its inputs: this package's source, and versions."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        source.update(path.name.encode() + path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"citypaths": source.hexdigest()[:12]} | versions


def spread_over_graph(
    client: Client | None, function: Callable, graph: CityGraph, jobs: Iterable[tuple]
) -> Iterator[tuple[tuple, Callable[[], Any]]]:
    """Do `function(graph, *job)` for every job; see `spread`. A worker gets the graph once.

    Without a client every core has a thread, for compiled functions that let the others run.
    """
    if client is None:
        yield from _in_threads(partial(function, graph), jobs)
        return
    with _held(client, graph) as name:
        for job, fetch in spread(client, _with_graph, ((function, name, *job) for job in jobs)):
            yield job[2:], fetch


def _in_threads(
    function: Callable, jobs: Iterable[tuple]
) -> Iterator[tuple[tuple, Callable[[], Any]]]:
    pool, waiting = ThreadPoolExecutor(threads := numba.get_num_threads()), deque()
    try:
        for job in jobs:
            waiting.append((job, pool.submit(function, *job)))
            if len(waiting) > threads:
                done, future = waiting.popleft()
                yield done, future.result
        yield from ((job, future.result) for job, future in waiting)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _held(client: Client, graph: CityGraph) -> Iterator[str]:
    """Let every worker hold the graph, and yield its name there.

    A plugin, since workers that join later get it too and none is preferred for having it, as
    would be with scattered data, which is also lost with the workers that have it.
    """
    plugin = type("HeldGraph", (distributed().WorkerPlugin,), {})()
    plugin.fingerprint, plugin.packed = graph.fingerprint, _pack(graph)
    name = f"citypaths-{uuid.uuid4().hex}"
    client.register_plugin(plugin, name=name)
    try:
        yield name
    finally:
        if client.status == "running":
            with suppress(OSError):
                client.unregister_worker_plugin(name)


def _pack(graph: CityGraph) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        graph.save(Path(folder) / "graph.npz")
        return (Path(folder) / "graph.npz").read_bytes()


def _with_graph(function: Callable, name: str, *job: Any) -> Any:
    worker = distributed().get_worker()
    threads = worker.state.nthreads  # of the cores, as many as the worker was given
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    held = worker.plugins[name]
    return function(_unpack(held.fingerprint, held.packed), *job)


_unpacked: dict[str, CityGraph] = {}
_unpacking = threading.Lock()


def _unpack(fingerprint: str, packed: bytes) -> CityGraph:
    """The graph, read once in a worker process."""
    with _unpacking:
        if fingerprint not in _unpacked:
            while len(_unpacked) >= KEPT:
                del _unpacked[next(iter(_unpacked))]
            with tempfile.NamedTemporaryFile(suffix=".npz") as file:
                file.write(packed)
                file.flush()
                _unpacked[fingerprint] = load_graph(Path(file.name))
        return _unpacked[fingerprint]
