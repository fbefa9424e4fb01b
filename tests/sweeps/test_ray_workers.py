"""What can be wrong with a Ray cluster; measuring on one is test_survival.py's."""

import sys
from types import SimpleNamespace

import pytest

from pytorch_quantizer import InputError
from pytorch_quantizer.sweeps import ray_workers as module
from pytorch_quantizer.sweeps.plan import parse_plan
from pytorch_quantizer.sweeps.ray_workers import RayWorkers, on_gpu, require_ray


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--ray needs Ray.*pip install 'pytorch-quantizer\[ray\]'"):
        require_ray()


@pytest.fixture
def ray(monkeypatch):
    """A stand-in: two nodes that live and a large one that doesn't."""
    nodes = [
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    options = []
    made = SimpleNamespace(
        is_initialized=lambda: True,
        nodes=lambda: nodes,
        cluster_resources=lambda: {"CPU": 3.0, "GPU": 1.0},
        remote=lambda **given: lambda function: SimpleNamespace(options=lambda **more: options.append(given | more)),
        asked=options,
    )
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setattr(module, "require_ray", lambda: None)
    return made


@pytest.mark.parametrize(("threads", "gpus"), [(2, 0.0), (1, 0.5), (1, 1.0)])
def test_a_point_that_fits_on_a_node(ray, threads, gpus):
    RayWorkers("auto", threads, gpus)
    [asked] = ray.asked
    assert (asked["num_cpus"], asked["num_gpus"]) == (threads, gpus)
    assert (asked["max_retries"], asked["max_calls"]) == (0, 0)


@pytest.mark.parametrize(("threads", "gpus"), [(3, 0.0), (2, 0.5), (1, 2.0)])
def test_a_point_that_fits_on_none(ray, threads, gpus):
    with pytest.raises(InputError, match=f"no node of the Ray cluster has {threads} CPUs and {gpus:g} GPUs"):
        RayWorkers("auto", threads, gpus)


@pytest.mark.parametrize(("threads", "gpus"), [(0, 0.0), (1, -1.0)])
def test_numbers_out_of_their_rule(ray, threads, gpus):
    with pytest.raises(InputError, match="must be 1 or more"):
        RayWorkers("auto", threads, gpus)


@pytest.mark.parametrize(
    ("device", "given", "visible", "on"),
    [
        ("cuda", [3], None, "cuda:3"),
        ("cuda", [3], "", "cuda:3"),
        ("cuda", ["5"], "2,5", "cuda:1"),
        ("cuda", [0, 1], "0,1", "cuda:0"),
        ("cuda", [], None, "cuda"),
        ("cpu", [0], None, "cpu"),
    ],
)
def test_a_point_is_on_the_gpu_that_ray_gave(device, given, visible, on):
    [point] = parse_plan({"recipes": ["w8a8"]}, {"device": device})[1]
    placed = on_gpu(point, given, visible)
    assert placed.config.device == on
    assert placed.columns() == point.columns()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379"])
def test_nobody_answers(address):
    pytest.importorskip("ray", reason="Ray isn't installed (extra [ray])")
    with pytest.raises(InputError, match=rf"--ray {address}: can't reach a Ray cluster"):
        RayWorkers(address, 1)
