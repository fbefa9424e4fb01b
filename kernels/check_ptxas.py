"""Compiles each CUDA kernel and checks what ptxas says of it: no spills, no local memory, few enough registers.

python kernels/check_ptxas.py [--arch 90] [--registers 128]

Needs nvcc, no GPU; takes seconds. Sources, includes, macros and flags are those of setup.py, which is asked for them.
Exits with 1, naming the kernels, where one fails; with 2 where nothing can be compiled.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension
from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

ROOT = Path(__file__).resolve().parents[1]
EXCEPTIONS: dict[str, str] = {}  # how a kernel's name begins: why it may fail

REPORT = re.compile(
    r"Function properties for (?P<symbol>\S+)\n"
    r"\s+(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r"(?:\nptxas info\s+: Used (?P<registers>\d+) registers(?P<rest>.*))?"  # a function of its own has no such line
)


@dataclass(frozen=True)
class Usage:
    """What one kernel takes: registers a thread, and bytes of static shared memory, local memory and spills."""

    kernel: str
    registers: int
    shared: int
    stack: int
    spills: int

    def failures(self, most_registers: int) -> list[str]:
        """What is wrong with it, in words."""
        wrong = {
            f"{self.registers} registers, more than {most_registers}": self.registers > most_registers,
            f"{self.stack} bytes of local memory": self.stack > 0,
            f"{self.spills} bytes spilled": self.spills > 0,
        }
        return [words for words, is_so in wrong.items() if is_so]


def parse(report: str) -> list[Usage]:
    """The kernels in what `nvcc -Xptxas -v` printed, in its order, their names as the source has them."""
    found = list(REPORT.finditer(report))
    names = demangled([match["symbol"] for match in found])
    return [_usage(name, match) for name, match in zip(names, found, strict=True)]


def _usage(name: str, match: re.Match[str]) -> Usage:
    shared = re.search(r"(\d+) bytes smem", match["rest"] or "")
    spills = int(match["stores"]) + int(match["loads"])
    return Usage(name, int(match["registers"] or 0), int(shared[1]) if shared else 0, int(match["stack"]), spills)


def demangled(symbols: Sequence[str]) -> list[str]:
    """C++ names without namespaces and arguments; the symbols themselves where no demangler is installed."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if not tool or not symbols:
        return list(symbols)
    done = subprocess.run([tool], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return [short_name(line) for line in done.stdout.splitlines()]


def short_name(name: str) -> str:
    """`void pq::(anonymous namespace)::f<c10::Half>(long)` as `f<Half>`."""
    plain = re.sub(r"^void |\(anonymous namespace\)::|\b(?:pq|c10)::", "", name)
    return re.sub(r"\((\w+)\)(?=\d)", r"\1 ", plain).partition("(")[0]  # an enumerator is printed as a cast


def cuda_extension() -> Extension:
    """What setup.py would build as _CUDA. Raises SystemExit with 2 where there is no toolkit."""
    from distutils.core import run_setup  # setuptools' own, now that it is imported

    with contextlib.chdir(ROOT):
        described = run_setup("setup.py", stop_after="init").ext_modules or []
    found = [extension for extension in described if extension.name.endswith("._CUDA")]
    if not found:
        print("check_ptxas.py: error: no CUDA toolkit (see above): set CUDA_HOME and PQ_CUDA=1", file=sys.stderr)
        raise SystemExit(2)
    return found[0]


def compile_report(source: str, extension: Extension, arch: str) -> str:
    """What ptxas says of one file's kernels. Raises SystemExit with 2 where it doesn't compile."""
    nvcc = Path(os.environ["CUDA_HOME"]) / "bin" / "nvcc"  # set by setup.py
    flags = [*COMMON_NVCC_FLAGS, *extension.extra_compile_args["nvcc"]]
    flags += [f"-I{folder}" for folder in extension.include_dirs]
    flags += [f"-D{name}={value}" if value else f"-D{name}" for name, value in extension.define_macros]
    target = [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-cubin", "-Xptxas", "-v"]
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *target, *flags, source, "-o", Path(folder) / "kernel.cubin"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(f"{done.stderr}check_ptxas.py: error: {source} doesn't compile", file=sys.stderr)
        raise SystemExit(2)
    return done.stderr


def table(usages: Sequence[Usage]) -> str:
    """A line a kernel."""
    head = f"{'kernel':<60} registers  shared memory  local memory  spills"
    lines = [f"{u.kernel:<60} {u.registers:9}  {u.shared:13}  {u.stack:12}  {u.spills:6}" for u in usages]
    return "\n".join([head, *lines])


def complaints(usages: Sequence[Usage], most_registers: int) -> list[str]:
    """A line a kernel that fails and is no exception."""
    failing = [(usage.kernel, usage.failures(most_registers)) for usage in usages]
    return [f"{name}: {', '.join(why)}" for name, why in failing if why and not name.startswith(tuple(EXCEPTIONS))]


def main() -> None:
    """Print the table; exit with 1 where a kernel fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="90", help="compute capability without its dot")
    parser.add_argument("--registers", type=int, default=128, help="the most that a thread may use")
    options = parser.parse_args()
    extension = cuda_extension()
    sources = [source for source in extension.sources if source.endswith(".cu")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(lambda source: compile_report(source, extension, options.arch), sources))
    usages = []
    for source, report in zip(sources, reports, strict=True):
        kernels = parse(report)
        print(f"\n{source}, sm_{options.arch}\n{table(kernels)}")
        if not kernels:
            print(f"check_ptxas.py: error: ptxas reports no kernel of {source}", file=sys.stderr)
            raise SystemExit(2)
        usages += kernels
    failing = complaints(usages, options.registers)
    print(f"\n{len(usages)} kernels, {len(failing)} fail", *failing, sep="\n")
    raise SystemExit(1 if failing else 0)


if __name__ == "__main__":
    main()
