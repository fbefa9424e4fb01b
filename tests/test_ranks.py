"""Several processes do what one does: each batch once, everything combined in one process's order."""

import io
import multiprocessing
import os
import socket

import pytest
import torch
import torch.distributed as dist
from networks import images, network
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.data import load_dataset, make_loader
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.ranks import ALONE, Ranks, device_of_rank, joined_ranks

BATCHES = [images(size, 3, 8, 8, seed=seed) for seed, size in enumerate((4, 4, 4, 4, 4, 4, 1))]
LABELLED = [(batch, torch.arange(len(batch)) % 5) for batch in BATCHES]


def small_network():
    torch.manual_seed(0)
    return network(
        lambda net, x: net.linear(net.relu(net.conv(x)).mean((2, 3))),
        conv=nn.Conv2d(3, 8, 3),
        relu=nn.ReLU(),
        linear=nn.Linear(8, 5),
    )


def job(ranks, recipe):
    """A network quantized and evaluated: its state, and what it answers."""
    model = small_network()
    quantized = pq.quantize(model, recipe, BATCHES, ranks=ranks, progress=False)
    found = pq.evaluate(quantized, ranks.share(LABELLED), reference=model, ranks=ranks, progress=False)
    return quantized.state_dict(), found.as_dict(), found.predictions, found.labels


def failing(ranks):
    def make():
        raise InputError("the first can't")

    try:
        ranks.from_first(make)
    except InputError as error:
        return str(error)


def _run_rank(work, environment, results):
    os.environ.update(environment)
    torch.set_num_threads(1)
    with joined_ranks() as ranks:
        box = io.BytesIO()  # by value: a tensor in a queue is gone with its process
        torch.save((ranks.rank, ranks.count, work(ranks)), box)
        results.put(box.getvalue())


def run_ranks(count, work):
    """What ``work(ranks)`` gives in each of ``count`` processes that found each other as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        context.Process(target=_run_rank, args=(work, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, results))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    boxes = [io.BytesIO(results.get()) for _ in processes]
    found = sorted((torch.load(box, weights_only=False) for box in boxes), key=lambda entry: entry[0])
    for process in processes:
        process.join()
    assert [(rank, of) for rank, of, _ in found] == [(rank, count) for rank in range(count)]
    return [value for _, _, value in found]


PLAIN = pq.Recipe(weights="int4", activations="int4", clip="mse", across_batches="mean")
CORRECTED = pq.Recipe(weights="int4", activations="int4", weight_clip="output_mse", activation_correction="both")


def everything(ranks):
    return {
        "plain": job(ranks, PLAIN),
        "corrected": job(ranks, CORRECTED),
        "failing": failing(ranks),
        "ordered": ranks.in_order(ranks.share(range(7))),
        "drawn": ranks.from_first(lambda: f"made by {ranks.rank}"),
    }


class TestProcesses:
    @pytest.fixture(scope="class")
    @staticmethod
    def found():
        return run_ranks(3, everything)

    @pytest.mark.parametrize(("name", "recipe"), [("plain", PLAIN), ("corrected", CORRECTED)])
    def test_every_rank_has_to_the_bit_what_one_process_has(self, found, name, recipe):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            state, record, predictions, labels = job(ALONE, recipe)
        finally:
            torch.set_num_threads(threads)
        for other in (rank[name] for rank in found):
            assert other[0].keys() == state.keys()
            assert all(torch.equal(other[0][name], state[name]) for name in state)
            assert other[1] == record
            assert torch.equal(other[2], predictions)
            assert torch.equal(other[3], labels)

    def test_shares_come_together_in_one_processs_order(self, found):
        assert [rank["ordered"] for rank in found] == [list(range(7))] * 3

    def test_what_the_first_makes_is_everyones(self, found):
        assert [rank["drawn"] for rank in found] == ["made by 0"] * 3

    def test_an_error_of_the_first_is_everyones(self, found):
        assert [rank["failing"] for rank in found] == ["the first can't"] * 3


class TestShares:
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
    def test_each_image_once_in_whole_batches(self, count):
        dataset = load_dataset("digits", split="test")
        whole = [batch for batch, _ in make_loader(dataset, 7, limit=50)]
        shares = [
            [batch for batch, _ in make_loader(dataset, 7, limit=50, ranks=Ranks(rank, count))] for rank in range(count)
        ]
        assert sum(map(len, shares)) == len(whole) == 8
        for index, batch in enumerate(whole):
            assert torch.equal(shares[index % count][index // count], batch)

    def test_rounds_hold_a_batch_a_rank(self):
        assert list(Ranks(1, 3).rounds(range(7))) == [(0, 1, 2), (3, 4, 5), (6,)]
        assert list(ALONE.rounds("ab")) == [("a",), ("b",)]

    def test_alone_nothing_is_exchanged(self):
        assert ALONE.everyones(3) == [3]
        assert ALONE.in_order([1, 2]) == [1, 2]
        assert ALONE.from_first(lambda: 5) == 5


class TestEnvironment:
    def test_without_torchrun_a_process_is_alone(self):
        for environment in ({}, {"WORLD_SIZE": "1", "RANK": "0"}):
            with joined_ranks(environment) as ranks:
                assert ranks == ALONE
        assert not dist.is_initialized()

    def test_an_environment_that_is_only_partly_there(self):
        ranks = joined_ranks({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"})
        with pytest.raises(InputError, match="MASTER_ADDR, MASTER_PORT in the environment: start them with torchrun"):
            ranks.__enter__()

    def test_each_rank_has_a_gpu_of_its_own_where_there_are_some(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        environment = {"WORLD_SIZE": "3", "LOCAL_RANK": "2"}
        assert device_of_rank(None, environment) == device_of_rank("cuda", environment) == "cuda:0"
        assert device_of_rank(None, environment | {"LOCAL_RANK": "1"}) == "cuda:1"
        assert device_of_rank("cpu", environment) == "cpu"
        assert device_of_rank("cuda:1", environment) == "cuda:1"
        assert device_of_rank(None, {}) is None
