"""Copies that share tensors: nothing is copied that needn't be, and nothing leaks from one model into another."""

import torch
from torch import fx, nn

import pytorch_quantizer as pq
from pytorch_quantizer.graph.insert import insert
from pytorch_quantizer.graph.place import place
from pytorch_quantizer.graph.share import copy_sharing, own_tensors


def tied_graph() -> fx.GraphModule:
    """Two linear layers of one weight, and a batch norm with buffers."""
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).eval()
    net[2].weight = net[0].weight
    return fx.symbolic_trace(net)


class TestCopySharing:
    def test_tensors_are_the_same_and_modules_are_not(self) -> None:
        graph = tied_graph()
        copied = copy_sharing(graph)
        assert copied.get_submodule("0") is not graph.get_submodule("0")
        for name, tensor in (*graph.named_parameters(), *graph.named_buffers()):
            assert dict((*copied.named_parameters(), *copied.named_buffers()))[name] is tensor

    def test_a_new_tensor_in_the_copy_leaves_the_graph_alone(self) -> None:
        graph = tied_graph()
        weight = graph.get_parameter("0.weight")
        copy_sharing(graph).get_submodule("0").weight = nn.Parameter(torch.zeros(4, 4))
        assert graph.get_parameter("0.weight") is weight


class TestOwnTensors:
    def test_nothing_is_shared_any_more(self) -> None:
        graph = tied_graph()
        copied = copy_sharing(graph)
        own_tensors(copied, graph)
        theirs = {tensor.data_ptr() for tensor in (*graph.parameters(), *graph.buffers())}
        assert not theirs & {tensor.data_ptr() for tensor in (*copied.parameters(), *copied.buffers())}
        assert torch.equal(copied.get_parameter("2.bias"), graph.get_parameter("2.bias"))

    def test_tied_stays_tied(self) -> None:
        graph = tied_graph()
        copied = copy_sharing(graph)
        own_tensors(copied, graph)
        assert copied.get_parameter("0.weight") is copied.get_submodule("2").weight

    def test_what_was_its_own_already_stays(self) -> None:
        graph = tied_graph()
        copied = copy_sharing(graph)
        mine = nn.Parameter(torch.zeros(4))
        copied.get_submodule("0").bias = mine
        own_tensors(copied, graph)
        assert copied.get_submodule("0").bias is mine


class TestQuantizedModel:
    def test_writing_into_it_changes_neither_the_model_nor_the_folded_graph(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
        floats = dict.fromkeys(("weights", "activations", "first", "last", "bias"), "float32")
        recipe = pq.Recipe(**floats, deployable=False)
        graph, _ = pq.fold(pq.capture(net))
        owned = [*net.parameters(), *net.buffers(), *graph.parameters()]
        before = [tensor.clone() for tensor in owned]
        quantized = insert(graph, place(graph, recipe, {}), recipe)
        with torch.no_grad():
            for tensor in (*quantized.parameters(), *quantized.buffers()):
                tensor.fill_(7)
        assert all(torch.equal(a, b) for a, b in zip(before, owned, strict=True))
