"""What a sweep's rows were measured with: versions and machines in OUTPUT/origins.json, by the rows' column `code`.
The rows themselves are results.py's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.errors import InputError

FILE = "origins.json"
Origin = dict[str, Any]  # versions and machine, as environment.provenance has them


class Origins:
    """A folder's origins.json; whoever adds must hold the folder's lock."""

    def __init__(self, folder: Path) -> None:
        """Read what is there. Raises InputError for a file that is damaged."""
        self._path = Path(folder) / FILE
        self._known = read_origins(self._path)

    def add(self, code: str, origin: Origin) -> None:
        """Write versions and machine of this code, unless they stand there; nothing where ``origin`` is empty."""
        known = self._known.get(code, {"machines": []})
        if not origin or origin["machine"] in known["machines"]:
            return
        machines = [*known["machines"], origin["machine"]]
        self._known[code] = {"versions": origin["versions"], "machines": machines}
        write_atomically(self._path, f"{json.dumps(self._known, indent=1)}\n".encode())


def read_origins(path: Path) -> dict[str, Any]:
    """By code: versions, a mapping, and machines, a list of mappings; nothing where there is no file.

    Raises InputError for a file that is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        if all({"versions", "machines"} <= entry.keys() for entry in found.values()):
            return found
        damage = "it lacks versions or machines"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        damage = " ".join(str(error).split())
    raise InputError(f"can't read {path} ({damage}): remove it, and what follows is written anew")
