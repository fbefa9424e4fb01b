"""Tensors of many images kept between blocks: in memory as long as a limit allows, else in files.
Which tensors these are is reconstruct.py's business.
"""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError


class ActivationCache:
    """Room for tensors, ``limit`` bytes of it in memory; what finds none there goes to files without a name, which are
    gone with the process, however it ends. folder: where they lie, the system's temporary folder unless given.

    What is read back is what was written, to the bit, wherever it lay.
    """

    def __init__(self, limit: float = math.inf, folder: Path | None = None) -> None:
        self.limit, self.folder, self.used = limit, folder, 0
        self._kept: weakref.WeakSet[Rows] = weakref.WeakSet()

    def room(self, count: int, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Rows:
        """Room for ``count`` rows of this shape. Raises InputError where no file can be made."""
        rows = Rows(self, count, shape, dtype)
        self._kept.add(rows)
        return rows

    def restrict(self, limit: float) -> None:
        """Take another limit; the largest of what lies in memory goes to files until the rest keeps to it."""
        self.limit = limit
        for rows in sorted(self._kept, key=lambda rows: rows.bytes, reverse=True):
            if self.used <= limit:
                return
            rows.move_to_file()


class Rows:
    """A tensor [count, *shape] that is written from the first row on and read by rows.

    Images, [C, H, W], lie and come back with their channels last: convolutions are up to five times as fast so on CPUs.
    """

    def __init__(self, cache: ActivationCache, count: int, shape: Sequence[int], dtype: torch.dtype) -> None:
        self._values: Tensor | None = None
        self._file: IO[bytes] | None = None
        self.count, self.dtype = count, dtype
        self.shape = (*shape[1:], shape[0]) if len(shape) == 3 else tuple(shape)
        self.row_bytes = math.prod(shape) * dtype.itemsize
        self.written = 0
        self._cache = cache
        if cache.used + self.bytes <= cache.limit:
            self._values = torch.empty(count, *self.shape, dtype=dtype)
            cache.used += self.bytes
        else:
            self._file = _new_file(cache.folder)

    @property
    def bytes(self) -> int:
        """What it takes, wherever it lies."""
        return self.count * self.row_bytes

    @property
    def in_memory(self) -> bool:
        """Whether it lies in memory."""
        return self._values is not None

    def append(self, batch: Tensor) -> None:
        """Write the next rows, [n, *shape], from any device.

        Raises InputError for rows of another shape than those before them, and where the disk is full.
        """
        self._append(self._as_they_lie(batch))

    def add(self, first: int, batch: Tensor) -> None:
        """Add to the rows from ``first`` on, [n, *shape], all of which have been written, or write the next ones."""
        if first == self.written:
            self.append(batch)
            return
        rows = self._as_they_lie(batch)
        assert first + len(rows) <= self.written
        sums = self._read(slice(first, first + len(rows))).add_(rows)
        if self._values is not None:
            self._values[first : first + len(rows)] = sums
        else:
            self._write(sums, first)

    def read(self, rows: Tensor | slice) -> Tensor:
        """The rows at these indices, int64 [n], or of a slice: a new tensor [n, *shape] on the CPU."""
        found = self._read(rows)
        return found.movedim(-1, 1) if found.dim() == 4 else found

    def release(self) -> None:
        """Give the room back, as happens by itself once nobody holds it; nothing can be read any more."""
        if self._values is not None:
            self._values = None
            self._cache.used -= self.bytes
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.release()

    def move_to_file(self) -> None:
        """Give back the memory, where it lies there."""
        values, written = self._values, self.written
        if values is not None:
            self.release()
            self._file, self.written = _new_file(self._cache.folder), 0
            self._append(values[:written])

    def _as_they_lie(self, batch: Tensor) -> Tensor:
        rows = batch.detach().to("cpu", self.dtype)
        rows = rows.movedim(1, -1) if rows.dim() == 4 else rows
        if tuple(rows.shape[1:]) != self.shape:
            first, other = (list(_channels_first(shape)) for shape in (self.shape, rows.shape[1:]))
            raise InputError(f"learning needs images of one size, got {other} behind {first}")
        return rows

    def _append(self, rows: Tensor) -> None:
        """Write rows that lie as they are to."""
        first, self.written = self.written, self.written + len(rows)
        if self._values is not None:
            self._values[first : self.written] = rows
        else:
            self._write(rows, first)

    def _write(self, rows: Tensor, first: int) -> None:
        """Write rows that lie as they are to into the file, from row ``first`` on."""
        assert self._file is not None
        try:
            _write(self._file, rows.contiguous(), first * self.row_bytes)
        except OSError as error:
            raise InputError(
                f"activations of {self.bytes / 2**20:.0f} MiB find no room on the disk ({error.strerror}): "
                "free some, set TMPDIR to another folder, or allow more memory"
            ) from error

    def _read(self, rows: Tensor | slice) -> Tensor:
        """The rows as they lie."""
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(self.written))
        if self._values is not None:
            return self._values.index_select(0, rows)
        indices = rows.tolist()
        found = torch.empty(len(indices), *self.shape, dtype=self.dtype)
        buffer = _bytes_of(found)
        assert self._file is not None
        for place, row in enumerate(indices):
            _read(self._file, buffer[place * self.row_bytes : (place + 1) * self.row_bytes], row * self.row_bytes)
        return found


def rows_of(batches: Sequence[Tensor]) -> Rows:
    """Batches [n, …] of one size as rows in memory. Raises InputError where sizes differ."""
    rows = ActivationCache().room(sum(map(len, batches)), batches[0].shape[1:], batches[0].dtype)
    for batch in batches:
        rows.append(batch)
    return rows


def _channels_first(shape: Sequence[int]) -> tuple[int, ...]:
    return (shape[-1], *shape[:-1]) if len(shape) == 3 else tuple(shape)


def _new_file(folder: Path | None) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError as error:
        raise InputError(
            f"no file for activations can be made in {folder or tempfile.gettempdir()} ({error.strerror}): "
            "set TMPDIR to another folder, or allow more memory"
        ) from error


def _bytes_of(tensor: Tensor) -> memoryview:
    numbers: Any = tensor.numpy()
    return memoryview(numbers).cast("B") if tensor.numel() else memoryview(bytearray())


def _write(file: IO[bytes], rows: Tensor, at: int) -> None:
    data = _bytes_of(rows)
    while len(data):
        done = os.pwrite(file.fileno(), data, at)
        data, at = data[done:], at + done


def _read(file: IO[bytes], into: memoryview, at: int) -> None:
    while len(into):
        done = os.preadv(file.fileno(), [into], at)
        if not done:
            raise EOFError(f"the row of activations at byte {at} was never written")
        into, at = into[done:], at + done
