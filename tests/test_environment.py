"""What stands beside measured numbers says on what, with what and when they were measured."""

import os
import platform
from datetime import UTC, datetime

import pytest
import torch

from pytorch_quantizer.environment import machine, machine_line, provenance


def test_measured_numbers_have_versions_machine_and_date():
    found = provenance()
    assert torch.__version__.startswith(found["versions"]["torch"].split("+")[0])
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["device"] == "cpu"
    assert abs((datetime.now(UTC).date() - datetime.fromisoformat(found["date"]).date()).days) <= 1


def test_what_need_not_be_installed_is_told_where_it_is():
    found = provenance("cpu", "pytest", "no-such-package")["versions"]
    assert "pytest" not in provenance()["versions"]
    assert found["pytest"]
    assert "no-such-package" not in found


@pytest.mark.parametrize(
    ("cores", "threads", "told"),
    [(2, 1, ["2 cores", "1 thread"]), (1, 16, ["1 core", "16 threads"]), (None, 1, ["1 thread"])],
)
def test_the_numbers_of_a_machine_say_what_they_count(monkeypatch, cores, threads, told):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    system = f"{platform.system()} {platform.machine()}"
    assert machine_line() == ", ".join([machine()["processor"], *told, system, "cpu"])
