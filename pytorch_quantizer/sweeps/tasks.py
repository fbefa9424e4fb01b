"""The points that wait to be measured, and what comes back of each, whoever measures them.
Workers of this machine are local_workers.py's, those of a Ray cluster ray_workers.py's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from pytorch_quantizer.sweeps.bench import Measured
from pytorch_quantizer.sweeps.point import Point


@dataclass(frozen=True)
class Task:
    """A point under its key."""

    key: str
    point: Point


@dataclass(frozen=True)
class Outcome:
    """What became of a task: Measured holds figures or an error."""

    task: Task
    measured: Measured


class Waiting:
    """Tasks in order; one that went with its worker comes again at once, until it has been tried ``tries`` times.

    Not for tasks that fail: their error is their outcome.
    """

    def __init__(self, tasks: Iterable[Task], tries: int) -> None:
        self._tasks = deque(tasks)
        self._tries, self._lost = tries, Counter[str]()

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def take(self) -> Task:
        """The next one, which is then the caller's: it hands out its Outcome, or says that it is lost."""
        return self._tasks.popleft()

    def give_back(self, task: Task) -> None:
        """A task that no worker has begun."""
        self._tasks.appendleft(task)

    def lost(self, task: Task, why: str) -> Outcome | None:
        """Let a task wait again, or after the last try give an outcome that tells ``why``."""
        self._lost[task.key] += 1
        if self._lost[task.key] < self._tries:
            self._tasks.appendleft(task)
            return None
        error = f"WorkerDied: {why}, {self._tries} times; less may fit into memory: fewer jobs, or a smaller batch size"
        return Outcome(task, Measured(task.point.columns() | {"error": error}, 0.0))


class Workers(Protocol):
    """Where points are measured; made ready before ``outcomes`` is asked for, and stopped by whoever made them."""

    def wait_ready(self) -> None:
        """Return when points can be measured; start-up ends here."""
        ...

    def outcomes(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """One of each task, in the order in which they end."""
        ...

    def stop(self) -> None:
        """End all that was started, at once."""
        ...
