"""Processes of this machine that measure points, each with its own network and its share of the threads.
They last as long as the sweep; one that dies is noticed, and another takes its place.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from tqdm import tqdm

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.sweeps.bench import Bench
from pytorch_quantizer.sweeps.tasks import Outcome, Task, Waiting
from pytorch_quantizer.user_warnings import plain_warnings

TRIES = 2  # of a point whose worker dies
STARTS = 3  # workers that die before they are ready, one after the other, until it is the machine's fault
READY = "ready"
PATIENCE = 5  # seconds in which an idle worker ends


@dataclass
class _Worker:
    """A process, the parent's end of its pipe, and the task that it has."""

    process: Any
    pipe: Connection
    task: Task | None = None
    ready: bool = False


class LocalWorkers:
    """``jobs`` processes with ``threads`` CPU threads each; make_bench: what measures, Bench unless a test says so."""

    def __init__(self, jobs: int, threads: int, make_bench: Callable[[], Any] = Bench) -> None:
        """Start them. Raises InputError for numbers below 1."""
        if min(jobs, threads) < 1:
            raise InputError(f"--jobs and --threads must be 1 or more, got {jobs} and {threads}")
        # A server that has imported all this, and never computed, forks each worker in milliseconds, without any of the
        # threads and locks of this process.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._threads, self._make_bench = threads, make_bench
        self._stillborn = 0  # deaths in a row before a worker was ready
        self._workers = [self._start(number) for number in range(jobs)]

    def wait_ready(self) -> None:
        """Return when all can measure. Raises RuntimeError where they can't start."""
        while not all(worker.ready for worker in self._workers):
            for number in self._heard():
                self._attend(number, Waiting((), TRIES))

    def outcomes(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """One of each task, in the order in which they end. Raises RuntimeError where no worker can start."""
        waiting = Waiting(tasks, TRIES)
        self._feed(waiting)
        while waiting or any(worker.task for worker in self._workers):
            for number in self._heard():
                outcome = self._attend(number, waiting)
                self._feed(waiting)  # before the outcome is looked at: that takes time
                if outcome is not None:
                    yield outcome

    def stop(self) -> None:
        """End the processes: idle ones of themselves, others by force."""
        for worker in self._workers:
            worker.pipe.close()  # which ends an idle one
            if worker.task is not None or not worker.ready:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(PATIENCE)
            worker.process.kill()
            worker.process.join()

    def _start(self, number: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, number, self._threads, self._make_bench), name=f"sweep worker {number}"
        )
        with _interrupts_held():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _heard(self) -> Sequence[int]:
        """The workers that sent something, or died; waits for one."""
        ready = wait([worker.pipe for worker in self._workers] + [worker.process.sentinel for worker in self._workers])
        return [
            number
            for number, worker in enumerate(self._workers)
            if worker.pipe in ready or worker.process.sentinel in ready
        ]

    def _attend(self, number: int, waiting: Waiting) -> Outcome | None:
        """Take what a worker sent; or put another in the place of one that died."""
        worker = self._workers[number]
        try:
            said = worker.pipe.recv() if worker.pipe.poll() else None
        except (EOFError, OSError):
            said = None
        if said is None:
            return self._replace(number, waiting)
        self._stillborn, worker.ready = 0, True
        task, worker.task = worker.task, None
        return Outcome(task, said) if task is not None else None

    def _replace(self, number: int, waiting: Waiting) -> Outcome | None:
        worker = self._workers[number]
        worker.process.kill()  # one that closed its pipe and lives is of no use
        worker.process.join()
        worker.pipe.close()
        self._stillborn += not worker.ready
        if self._stillborn >= STARTS:
            raise RuntimeError(
                f"sweep workers {_end(worker.process.exitcode)} as they start, {STARTS} times: see above"
            )
        self._workers[number] = self._start(number)
        return waiting.lost(worker.task, f"its process {_end(worker.process.exitcode)}") if worker.task else None

    def _feed(self, waiting: Waiting) -> None:
        for worker in self._workers:
            if waiting and worker.ready and worker.task is None:
                worker.task = waiting.take()
                with suppress(OSError):  # it is dead, which is seen when it is heard next
                    worker.pipe.send(worker.task)


def _serve(pipe: Connection, number: int, threads: int, make_bench: Callable[[], Any]) -> None:
    """What a worker does until its pipe is closed, or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is shared by processes, and one that is killed leaves it behind
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    bench = make_bench()
    with suppress(EOFError, OSError), plain_warnings():
        pipe.send(READY)
        while True:
            pipe.send(bench.measure(pipe.recv().point))


def _end_with_parent() -> None:
    """A point can take hours, and nobody would take its row."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits, and a process that is started meanwhile never sees it: it is for the parent to end its workers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by signal {-code} ({signal.Signals(-code).name})"
    return f"ended with code {code}"
