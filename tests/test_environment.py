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
