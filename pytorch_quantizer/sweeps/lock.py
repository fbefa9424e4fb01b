"""One sweep at a time on a folder: a lock that ends with the process that holds it, however that ends.
What lies in the folder is results.py's.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_quantizer.atomic import require_writable
from pytorch_quantizer.errors import InputError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder. Raises InputError where another process holds it, or it can't be written to.

    The system takes the lock from a process that is gone; the file stays, and means nothing by itself.
    """
    path = Path(folder) / LOCK
    require_writable(path)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(
                f"another sweep ({holder}) is writing into {folder}: wait for its end, or give another --output"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
