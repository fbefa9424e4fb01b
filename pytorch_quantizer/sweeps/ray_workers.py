"""Points as tasks of a Ray cluster (extra ``[ray]``): Ray chooses where, and what a lost node had is measured again.
Every node needs this package, in the same version, and the images under the same path.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from pytorch_quantizer.errors import InputError, first_line
from pytorch_quantizer.experiments.cells import code_digest
from pytorch_quantizer.sweeps.bench import Bench, Measured
from pytorch_quantizer.sweeps.point import Point
from pytorch_quantizer.sweeps.tasks import Outcome, Task, Waiting

TRIES = 4  # of a point whose worker dies: nodes come and go, and a point may meet several that go
PATIENCE = 10  # seconds until an address must answer
AHEAD = 4  # tasks a slot that Ray is given before it asks: a cluster that grows sees that there is work


class RayWorkers:
    """Measures on a cluster; a task takes ``threads`` CPUs and ``gpus_per_point`` of a GPU."""

    def __init__(self, address: str, threads: int, gpus_per_point: float = 0.0) -> None:
        """Connect. Raises InputError where ray isn't installed, nobody answers, or no node has what a point takes."""
        require_ray()
        if threads < 1 or gpus_per_point < 0:
            raise InputError(
                f"--threads must be 1 or more, --gpus-per-point 0 or more, got {threads}, {gpus_per_point}"
            )
        import ray

        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(address)
        needs = {"CPU": float(threads), "GPU": gpus_per_point}
        _check_fits(ray, needs)
        slots = int(min(ray.cluster_resources()[name] / number for name, number in needs.items() if number))
        self._most = max(AHEAD, AHEAD * slots)
        # max_calls 0: a process lasts, and its network with it, where Ray would end one after each task on a GPU.
        self._measure = ray.remote(max_calls=0)(_measure).options(
            num_cpus=threads, num_gpus=gpus_per_point, max_retries=0, runtime_env=_environment(gpus_per_point)
        )
        self._threads = threads

    def wait_ready(self) -> None:
        """Nothing to wait for: Ray starts processes as there is work for them."""

    def outcomes(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """One of each task, in the order in which they end; what went with a node is given out again."""
        waiting, running = Waiting(tasks, TRIES), dict[Any, Task]()
        while waiting or running:
            while waiting and len(running) < self._most:
                task = waiting.take()
                running[self._measure.remote(task, self._threads)] = task
            for reference in self._ray.wait(list(running), num_returns=1)[0]:
                outcome = self._taken(reference, running.pop(reference), waiting)
                if outcome is not None:
                    yield outcome

    def stop(self) -> None:
        """Leave the cluster; what still runs there for this sweep is ended by Ray."""
        if self._ours:
            self._ray.shutdown()

    def _taken(self, reference: Any, task: Task, waiting: Waiting) -> Outcome | None:
        errors = self._ray.exceptions
        try:
            measured: Measured = self._ray.get(reference)
        except errors.RayTaskError as error:  # the node couldn't run this package's code at all
            return Outcome(task, _failed(task, f"on the node: {first_line(error.cause or error)}"))
        except errors.RayError as error:
            return waiting.lost(task, f"its worker was lost ({type(error).__name__})")
        if measured.row["code"] != code_digest(any_machine=True):
            said = "the node has another version of pytorch_quantizer or of its libraries: install this one there"
            return Outcome(task, _failed(task, said))
        return Outcome(task, measured)


def require_ray() -> None:
    """Raise InputError where ray isn't installed."""
    if importlib.util.find_spec("ray") is None:
        raise InputError("--ray needs Ray, which isn't installed: pip install 'pytorch-quantizer[ray]'")


def _connect(address: str) -> None:
    import ray

    try:
        _check_answers(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--ray {address}: can't reach a Ray cluster ({first_line(error)}); start one by ray start --head, "
            "or give auto, local, or HOST:PORT"
        ) from error


def _check_answers(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and host and "/" not in host:
        socket.create_connection((host, int(port)), PATIENCE).close()


def _check_fits(ray: Any, needs: dict[str, float]) -> None:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0.0) >= number for name, number in needs.items()) for node in nodes):
        raise InputError(
            f"no node of the Ray cluster has {needs['CPU']:g} CPUs and {needs['GPU']:g} GPUs for a point: "
            "lower --threads or --gpus-per-point"
        )


def _environment(gpus_per_point: float) -> dict[str, Any] | None:
    """Let a process see all GPUs of its node: which one is its own changes from task to task, and torch looks once."""
    return {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}} if gpus_per_point else None


def _measure(task: Task, threads: int) -> Measured:
    """On a node: measure in this process, which Ray keeps for further tasks, and its bench with it."""
    import ray

    torch.set_num_threads(threads)
    return _bench().measure(on_gpu(task.point, ray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES")))


def on_gpu(point: Point, given: Sequence[int | str], visible: str | None) -> Point:
    """The point on the first GPU that Ray gave, by torch's number; visible: CUDA_VISIBLE_DEVICES of the process."""
    if point.config.device != "cuda" or not given:
        return point
    seen = visible.split(",") if visible else []
    number = seen.index(str(given[0])) if str(given[0]) in seen else int(given[0])
    return replace(point, config=replace(point.config, device=f"cuda:{number}"))


@functools.cache
def _bench() -> Bench:
    return Bench()


def _failed(task: Task, why: str) -> Measured:
    return Measured(task.point.columns() | {"error": f"RayError: {why}"}, 0.0)
