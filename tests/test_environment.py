"""What stands beside measured numbers says on what, with what and when they were measured."""

from datetime import UTC, datetime

import torch

from pytorch_quantizer.environment import provenance


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
