"""Tasks in order, and those that went with their worker."""

from benches import task

from pytorch_quantizer.sweeps.tasks import Waiting


def test_in_order():
    waiting = Waiting([task("a"), task("b")], tries=2)
    assert [waiting.take().key for _ in range(2)] == ["a 0", "b 0"]
    assert not waiting


def test_a_lost_one_comes_again_until_its_tries_are_over():
    waiting = Waiting([task("a"), task("b")], tries=3)
    for _ in range(2):
        first = waiting.take()
        assert first.key == "a 0"
        assert waiting.lost(first, "it went") is None
    outcome = waiting.lost(waiting.take(), "it went")
    assert outcome.task.key == "a 0"
    assert outcome.measured.row["error"].startswith("WorkerDied: it went, 3 times; ")
    assert outcome.measured.row["recipe"] == "a"
    assert waiting.take().key == "b 0"
    assert not waiting


def test_each_has_its_own_tries():
    waiting = Waiting([task("a"), task("b")], tries=2)
    first, second = waiting.take(), waiting.take()
    assert waiting.lost(first, "") is None
    assert waiting.lost(second, "") is None
