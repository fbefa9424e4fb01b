"""Fixtures for all tests: devices, instruction sets, thread counts. What can't be tested here skips by name."""

import pytest
import torch

from pytorch_quantizer.backend import backend, module_path

ISAS = ("baseline", "avx2", "avx512")


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        if not module_path("_CUDA"):
            pytest.skip("CUDA kernels are not built")
    return request.param


@pytest.fixture
def second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("no second CUDA device")
    return "cuda:1"


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    if not module_path("_C"):
        pytest.skip("CPU kernels are not built")
    monkeypatch.setenv("PQ_CPU_CAPABILITY", request.param)
    if backend().cpu != request.param:
        pytest.skip(f"this CPU has no {request.param}")
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
