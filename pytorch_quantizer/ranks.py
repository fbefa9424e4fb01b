"""Several processes that do one job, as torchrun starts them: who does which batch, and everyone's results in order.
What a job does with that is calibrate.py's and metrics.py's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, islice, zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pytorch_quantizer.errors import InputError

T = TypeVar("T")

PATIENCE = timedelta(
    days=7
)  # that ranks wait for each other: one may learn for hours while the others have nothing to do
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Ranks:
    """One process among ``count``, numbered from 0. Batch i of the order that one process has is rank i mod count's.

    Whatever is combined is combined in that order on every rank, so that each has, to the bit, what one process has.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Those of the items, in one process's order, that are this rank's."""
        return items[self.rank :: self.count]

    def rounds(self, items: Iterable[T]) -> Iterator[tuple[T, ...]]:
        """The items in groups of which each rank does at most one: the one at its number, where there is one."""
        left = iter(items)
        while group := tuple(islice(left, self.count)):
            yield group

    def everyones(self, value: T) -> list[T]:
        """What each rank gives, by rank; all wait for all. Values are pickled: tensors must be on the CPU."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def in_order(self, items: Sequence[T]) -> list[T]:
        """All ranks' items in one process's order, ``items`` being what this rank made of its share."""
        boxed = [[(item,) for item in part] for part in self.everyones(list(items))]
        rows = zip_longest(*boxed, fillvalue=())
        return [item for box in chain.from_iterable(rows) for item in box]

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first rank makes, on every rank; an error of its is raised on every rank."""
        if self.count == 1:
            return make()
        made, error = None, None
        if self.is_first:
            try:
                made = make()
            except Exception as raised:  # whatever it is: the others must not wait for ever
                error = raised
        box: list[Any] = [made, error]
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise error or box[1]
        value: T = box[0]
        return value


ALONE = Ranks()


@contextmanager
def joined_ranks(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """Yield this process among those that torchrun started with it; alone, where torchrun didn't start it.

    They find each other by what torchrun put into the environment, and exchange results by gloo, whatever device they
    compute on. Raises InputError where the environment is only partly there.
    """
    if not is_one_of_several(environment):
        yield ALONE
        return
    missing = [name for name in (*TORCHRUN, "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise InputError(f"several processes need {', '.join(missing)} in the environment: start them with torchrun")
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def is_one_of_several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started more than this process."""
    return environment.get("WORLD_SIZE", "1") != "1"


def device_of_rank(name: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The device for this process where ``name`` leaves it open, "cuda" or None: a GPU each, by the local rank."""
    local = environment.get("LOCAL_RANK")
    if local is None or not is_one_of_several(environment):
        return name
    if name not in (None, "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{int(local) % torch.cuda.device_count()}"
