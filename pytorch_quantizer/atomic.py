"""Writing a file whole or not at all: a temporary file in the same folder, fsync, rename.
What is written, and in which format, is the caller's business.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_quantizer.errors import InputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving without an exception it is synced and takes the name `path`.

    The parent folder is made where it is missing. After an exception the temporary file is gone and whatever stood
    at `path` is as it was. Raises InputError where the folder can't be made or written to.
    """
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        yield temporary
        _take_default_mode(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees either the old file or the whole new one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def require_writable(path: str | Path) -> None:
    """Raise InputError now where atomic_path would raise it after hours of work."""
    _temporary_beside(Path(path)).unlink()


def _temporary_beside(path: Path) -> Path:
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the path of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}; choose another output folder") from error
    os.close(handle)
    return Path(name)


def _take_default_mode(path: Path) -> None:
    """Make a result as readable as any other new file: mkstemp, and safetensors, let only the owner in."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
