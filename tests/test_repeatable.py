"""Learning asks for kernels that repeat, and leaves torch's settings as they were, whatever happens."""

import pytest
import torch

from pytorch_quantizer.repeatable import repeatable_kernels


def settings():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )


@pytest.fixture(params=[False, True], ids=["torch's own", "the caller's"])
def before(request):
    """Settings that differ from those inside."""
    kept = settings()
    if request.param:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = True
    yield settings()
    torch.use_deterministic_algorithms(kept[0], warn_only=kept[1])
    torch.utils.deterministic.fill_uninitialized_memory = kept[2]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = kept[3:]


def test_inside_and_behind(before):
    with repeatable_kernels():
        assert settings() == (True, True, False, True, False)
    assert settings() == before


def test_behind_an_error(before):
    with pytest.raises(RuntimeError, match="stopped"), repeatable_kernels():
        raise RuntimeError("stopped")
    assert settings() == before
