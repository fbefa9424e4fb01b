"""Builds the kernels: `_C` (schemas, CPU) everywhere, `_CUDA` where a CUDA toolkit is. The rest is in pyproject.toml.

PQ_CUDA=0 leaves CUDA out, PQ_CUDA=1 makes its absence an error. The toolkit is CUDA_HOME, or where nvcc really lives.
TORCH_CUDA_ARCH_LIST chooses the architectures. No GPU is looked for: a build host need not have one.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import Extension, setup

ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
ROOT = Path(__file__).parent
DEFINES = [("TORCH_TARGET_VERSION", "0x020b000000000000")]
# Results are IEEE to the bit: nothing may fuse a multiplication into an addition. The other three change no value;
# they let the compiler vectorise comparisons, rounding and division that nobody checks the exception flags of.
CXX_FLAGS = ["-O3", "-std=c++20", "-Wall", "-Wextra", "-fvisibility=hidden"]
CXX_FLAGS += ["-Wno-psabi"]  # vectors pass between inlined functions alone, where no calling convention matters
CXX_FLAGS += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-semantic-interposition"]
NVCC_FLAGS = ["-O3", "-std=c++20", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"]
NVCC_FLAGS += ["-Xcompiler", "-Wall,-Wextra,-fvisibility=hidden"]


def toolkit_of(nvcc: str) -> Path | None:
    """Ask nvcc for the toolkit's root: on PATH it may be a wrapper script that lives elsewhere."""
    answer = subprocess.run([nvcc, "--dryrun", "none.cu"], capture_output=True, text=True)
    found = re.search(r"^#\$ _HERE_=(.+)$", answer.stderr, re.MULTILINE)
    return Path(found[1].strip()).parent if found else None


def find_toolkit() -> Path | None:
    """Find CUDA_HOME, the real location of nvcc on PATH, or /usr/local/cuda; None where no nvcc is there."""
    on_path = shutil.which("nvcc")
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(named)] if named else [toolkit_of(on_path) if on_path else None, Path("/usr/local/cuda")]
    return next((c for c in candidates if c and (c / "bin" / "nvcc").exists()), None)


def known_architectures(toolkit: Path) -> str:
    """List ARCHITECTURES cut to what this nvcc knows, the last one with PTX for the GPUs to come."""
    answer = subprocess.run([toolkit / "bin" / "nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = set(re.findall(r"compute_(\d+)", answer.stdout))
    return " ".join(a for a in ARCHITECTURES if a.replace(".", "") in known) + "+PTX"


def cuda_toolkit() -> Path | None:
    """Find the toolkit to build with, or None: unwanted (PQ_CUDA=0), absent, or of no use to a CPU-only torch."""
    wanted = os.environ.get("PQ_CUDA", "")
    if wanted == "0":
        return None
    toolkit = find_toolkit()
    missing = "no CUDA toolkit found (set CUDA_HOME)" if not toolkit else ""
    missing = missing or ("" if torch.version.cuda else f"the installed torch {torch.__version__} has no CUDA")
    if missing and wanted == "1":
        raise SystemExit(f"PQ_CUDA=1, but {missing}")
    print(f"CUDA kernels: {'left out, ' + missing if missing else f'built with {toolkit}'}")
    return None if missing else toolkit


TOOLKIT = cuda_toolkit()
if TOOLKIT:  # before cpp_extension is imported: it reads both, and would guess the wrapper's folder
    os.environ["CUDA_HOME"] = str(TOOLKIT)
    os.environ["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST") or known_architectures(TOOLKIT)

from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths  # noqa: E402


class Build(BuildExtension):
    """torch's build, its object files always in build/kernels: pip and build_all.sh find what the other compiled."""

    def finalize_options(self) -> None:  # noqa: D102
        super().finalize_options()
        self.build_temp = str(ROOT / "build" / "kernels")


def extension(
    name: str, patterns: list[str], libraries: list[str], includes: list[str], folders: list[str]
) -> Extension:
    """Describe one shared library of the stable ABI; it has no Python in it and is loaded by torch.ops.load_library."""
    sources = sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))
    headers = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "kernels").rglob("*.*h"))
    return Extension(
        f"pytorch_quantizer.{name}",
        sources,
        depends=[*headers, "setup.py"],
        define_macros=[*DEFINES, *([("USE_CUDA", None)] if name == "_CUDA" else [])],
        include_dirs=[str(ROOT / "kernels"), *includes],
        library_dirs=folders,
        libraries=libraries,
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
        py_limited_api=True,
        language="c++",
    )


def extensions() -> list[Extension]:
    """List what is to be built."""
    built = [extension("_C", ["kernels/*.cpp", "kernels/cpu/*.cpp"], ["torch_cpu"], include_paths(), library_paths())]
    if TOOLKIT:
        folders = [str(TOOLKIT / name) for name in ("lib64", "lib") if (TOOLKIT / name / "libcudart.so").exists()]
        # Where the toolkit has no library to link, its functions are found through libtorch_cuda when loading.
        libraries = ["torch_cpu", "torch_cuda", *(["cudart"] if folders else [])]
        includes = [*include_paths(), str(TOOLKIT / "include")]
        sources = ["kernels/cuda/*.cu", "kernels/cuda/*.cpp"]
        built.append(extension("_CUDA", sources, libraries, includes, [*library_paths(), *folders]))
    return built


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
