"""The one interface of all logbooks, and several of them as one that can't stop the work it is told of.
Each kind is in a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from pytorch_quantizer.user_warnings import warn_user

Settings = Mapping[str, str | int | float | bool]
Values = Mapping[str, float]
Answer = TypeVar("Answer")


class Run(Protocol):
    """A run that is being written down."""

    def log(self, values: Values, step: int) -> None:
        """Numbers by name, of a step: an epoch, or 0 where there is only one."""
        ...

    def finish(self) -> None:
        """Nothing more comes: from now on the logbook has it."""
        ...


class Logbook(Protocol):
    """Where runs are written down, each under a key that says what it is."""

    def has(self, key: str) -> bool:
        """Whether a finished run of this key is in it."""
        ...

    def run(self, name: str, key: str, settings: Settings) -> Run:
        """Begin one; or go on with an unfinished one of this key, of which steps that come again stand there once."""
        ...


@dataclass(frozen=True)
class LogFlags:
    """Which logbooks are asked for; each field's ``metadata["help"]`` is its flag's help."""

    tensorboard: Path | None = field(
        default=None, metadata={"help": "folder of TensorBoard's event files (extra [tensorboard])"}
    )
    mlflow: str | None = field(
        default=None, metadata={"help": "MLflow's tracking URI: sqlite:///FILE, or a server's (extra [mlflow])"}
    )


class Logbooks:
    """Several as one. One that raises is told of in a warning and left alone from then on: a log stops no work."""

    def __init__(self, logbooks: Sequence[Logbook]) -> None:
        self._guarded = [_Guarded(logbook) for logbook in logbooks]

    def run(self, name: str, key: str, settings: Settings, *, missing_only: bool = False) -> Run:
        """In all of them; missing_only: in those that have no finished run of this key."""
        chosen = [guarded for guarded in self._guarded if not (missing_only and guarded.has(key))]
        return _Runs([guarded.run(name, key, settings) for guarded in chosen])


class _Guarded:
    """A logbook whose errors are warnings."""

    def __init__(self, logbook: Logbook) -> None:
        self._logbook = logbook
        self._broken = False

    def has(self, key: str) -> bool:
        return self.attempt(lambda: self._logbook.has(key), otherwise=True)

    def run(self, name: str, key: str, settings: Settings) -> _GuardedRun:
        return _GuardedRun(self, self.attempt(lambda: self._logbook.run(name, key, settings), otherwise=None))

    def attempt(self, action: Callable[[], Answer], otherwise: Answer) -> Answer:
        if self._broken:
            return otherwise
        try:
            return action()
        except Exception as error:  # whatever a server or a disk says
            self._broken = True
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            name = type(self._logbook).__name__
            warn_user(f"{name} takes no more for this run ({said}); the tables have it all")
            return otherwise


class _GuardedRun:
    def __init__(self, guarded: _Guarded, run: Run | None) -> None:
        self._guarded, self._run = guarded, run

    def log(self, values: Values, step: int) -> None:
        if (run := self._run) is not None:
            self._guarded.attempt(lambda: run.log(values, step), otherwise=None)

    def finish(self) -> None:
        if (run := self._run) is not None:
            self._guarded.attempt(run.finish, otherwise=None)


class _Runs:
    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs

    def log(self, values: Values, step: int) -> None:
        for run in self._runs:
            run.log(values, step)

    def finish(self) -> None:
        for run in self._runs:
            run.finish()
