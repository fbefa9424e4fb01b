"""The build: what it finds, what it needs of torch, and what happens where nothing is built."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pytorch_quantizer.backend import backend, module_path
from pytorch_quantizer.fallback import SCHEMAS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pytorch_quantizer"

FALLBACK = """
import warnings, torch
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    from pytorch_quantizer import ops, reference
    from pytorch_quantizer.backend import backend
    assert not caught, [str(w.message) for w in caught]
    x = torch.randn(3, 4, requires_grad=True)
    grid = torch.tensor(0.1), torch.tensor(3, dtype=torch.int32), 0, 15
    for rounding in ops.ROUNDINGS:
        y = ops.fake_quantize(x, *grid, rounding=rounding)
        assert torch.equal(y, reference.fake_quantize(x, *grid, rounding=rounding))
    y.sum().backward()
    x = x.detach()
    codes = ops.quantize(x, *grid)
    assert torch.equal(ops.dequantize(codes, *grid[:2]), ops.fake_quantize(x, *grid, out=torch.empty_like(x)))
    assert torch.equal(ops.tensor_statistics(x, axis=1), reference.tensor_statistics(x, axis=1))
    tables = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([-0.25, 1.25])
    y = ops.codebook_fake_quantize(x, *tables)
    assert torch.equal(ops.codebook_dequantize(ops.codebook_quantize(x, tables[1]), tables[0]), y)
    assert torch.equal(ops.codebook_fake_quantize(x, *tables, out=torch.empty_like(x)), y)
    packed = ops.pack(codes, 4)
    assert torch.equal(ops.pack(codes, 4, out=torch.empty_like(packed)), packed)
    assert torch.equal(ops.unpack(packed, 4, codes.shape), codes)
    assert torch.equal(ops.unpack(packed, 4, codes.shape, out=torch.empty_like(codes)), codes)
    scale, zero_point = torch.ones(4), torch.zeros(4, dtype=torch.int32)
    expected = reference.fake_quantize(x, scale, zero_point, 0, 15, axis=1)
    in_place = torch.compile(ops.fake_quantize_, fullgraph=True, backend="aot_eager")
    assert torch.equal(in_place(x, scale, zero_point, 0, 15, axis=1), expected)
messages = [str(w.message) for w in caught if "pytorch_quantizer" in str(w.message)]
assert len(messages) == 1, messages
print(backend())
print(messages[0])
"""


def run(arguments, cwd=ROOT, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PQ_", "CUDA_", "TORCH_CUDA"))}
    return subprocess.run(arguments, capture_output=True, text=True, cwd=cwd, env=clean | environment)


def test_without_kernels_plain_pytorch_runs_after_one_warning(tmp_path):
    plain_package(tmp_path)
    done = run([sys.executable, "-c", FALLBACK], cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    report, warning = done.stdout.splitlines()[-2:]
    assert report.startswith("cpu: reference; cuda: not built")
    assert "no kernels built for cpu" in warning
    assert "kernels/build_all.sh" in warning


def plain_package(folder):
    """The part of the package that chooses and runs ops, without built modules."""
    package = folder / "pytorch_quantizer"
    package.mkdir()
    for name in ("backend", "fallback", "errors", "user_warnings"):
        shutil.copy(PACKAGE / f"{name}.py", package)
    for name in ("ops", "reference"):
        shutil.copytree(PACKAGE / name, package / name)
    (package / "__init__.py").write_text("from pytorch_quantizer.backend import backend\n")
    return package


def test_kernels_that_do_not_load_are_told_of_and_plain_pytorch_runs(tmp_path):
    (plain_package(tmp_path) / "_C.abi3.so").write_bytes(b"no library")
    code = "from pytorch_quantizer.backend import backend; print(backend())"
    done = run([sys.executable, "-c", code], cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cpu: reference; cuda: not built")
    assert re.search(
        r"<string>:1: QuantizerWarning: _C\.abi3\.so doesn't load \(.*_C\.abi3\.so.*\); build it again by "
        r"kernels/build_all\.sh",
        done.stderr,
    )


@pytest.mark.skipif(not module_path("_C"), reason="CPU kernels are not built")
class TestBuilt:
    def test_schemas_are_those_of_the_fallback(self):
        for name, schema in SCHEMAS.items():
            built = str(getattr(torch.ops.pytorch_quantizer, name).default._schema)
            assert built == f"pytorch_quantizer::{name}{schema}"

    def test_every_op_has_a_cpu_kernel(self):
        for name in SCHEMAS:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pytorch_quantizer::{name}", "CPU")

    @pytest.mark.skipif(not module_path("_CUDA") or not torch.version.cuda, reason="CUDA kernels are not built")
    def test_every_op_has_a_cuda_kernel(self):
        for name in SCHEMAS:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pytorch_quantizer::{name}", "CUDA")

    def test_backend_says_what_runs(self, isa):
        assert str(backend()).startswith(f"cpu: {isa}; cuda: ")
        assert ("not built" in backend().cuda) == (module_path("_CUDA") is None)

    @pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
    @pytest.mark.parametrize("name", ["_C", "_CUDA"])
    def test_needs_nothing_of_torch_or_python_but_stable_c_functions(self, name):
        if not module_path(name):
            pytest.skip(f"{name} is not built")
        listing = run(["nm", "-D", "-C", "--undefined-only", str(module_path(name))]).stdout
        symbols = [line.split(maxsplit=1)[1] for line in listing.splitlines()]
        assert any(s.startswith("aoti_torch_") for s in symbols)
        assert not [s for s in symbols if re.match(r"(c10|at|torch)::|Py[A-Z_]|_Py", s)]


class TestSetup:
    """setup.py decides by what is there, never by a GPU."""

    @staticmethod
    def setup(**environment):
        return run([sys.executable, "-W", "ignore", str(ROOT / "setup.py"), "--name"], **environment)

    def test_cuda_can_be_left_out(self):
        assert "CUDA kernels" not in self.setup(PQ_CUDA="0").stdout

    def test_a_toolkit_that_is_demanded_and_absent_is_an_error(self, tmp_path):
        done = self.setup(PQ_CUDA="1", CUDA_HOME=str(tmp_path))
        assert done.returncode != 0
        assert done.stderr.strip().splitlines()[-1] == "PQ_CUDA=1, but no CUDA toolkit found (set CUDA_HOME)"

    @pytest.mark.skipif(not shutil.which("nvcc") or not torch.version.cuda, reason="no nvcc, or torch without CUDA")
    def test_a_wrapper_script_leads_to_the_real_toolkit(self, tmp_path):
        wrapper = tmp_path / "bin" / "nvcc"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("nvcc")} "$@"\n')
        wrapper.chmod(0o755)
        found = re.search(r"built with (.+)", self.setup(PATH=f"{wrapper.parent}:{os.environ['PATH']}").stdout)
        assert (Path(found[1]) / "include" / "cuda_runtime.h").exists()

    def test_build_all_runs_from_anywhere(self, tmp_path):
        copy = tmp_path / "project"
        (copy / "kernels").mkdir(parents=True)
        (copy / "pytorch_quantizer").mkdir()
        shutil.copy(ROOT / "kernels" / "build_all.sh", copy / "kernels")
        (copy / "setup.py").write_text("import os, sys; print('built in', os.getcwd(), sys.argv[1:])")
        (copy / "pytorch_quantizer" / "__init__.py").touch()
        (copy / "pytorch_quantizer" / "backend.py").write_text("def backend(): return 'said'")
        done = self.built(copy)
        assert done.stdout.splitlines() == [f"built in {copy} ['build_ext', '--inplace']", "said"], done.stderr

    def test_build_all_takes_the_ninja_beside_its_python(self, tmp_path):
        """Another version, first on PATH or not, would build all anew."""
        copy = tmp_path / "project"
        for folder in ("kernels", "pytorch_quantizer", "other", "own"):
            (copy / folder).mkdir(parents=True)
        shutil.copy(ROOT / "kernels" / "build_all.sh", copy / "kernels")
        (copy / "setup.py").write_text("import shutil; print(shutil.which('ninja'))")
        (copy / "pytorch_quantizer" / "__init__.py").touch()
        (copy / "pytorch_quantizer" / "backend.py").write_text("def backend(): return 'said'")
        for name, text in (("other/ninja", ""), ("own/ninja", ""), ("own/python", f'exec {sys.executable} "$@"\n')):
            (copy / name).write_text(f"#!/bin/sh\n{text}")
            (copy / name).chmod(0o755)
        path = f"{copy / 'other'}:{os.environ['PATH']}"
        done = self.built(copy, PYTHON=str(copy / "own" / "python"), PATH=path)
        assert done.stdout.splitlines() == [str(copy / "own" / "ninja"), "said"], done.stderr

    @staticmethod
    def built(copy, **environment):
        return subprocess.run(
            [str(copy / "kernels" / "build_all.sh")],
            cwd="/",
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHON": sys.executable} | environment,
        )
