"""Copies that share tensors: nothing is copied that needn't be, and nothing leaks from one model into another."""

import warnings

import torch
from torch import fx, nn

import pytorch_quantizer as pq
from pytorch_quantizer.graph.insert import insert
from pytorch_quantizer.graph.place import place
from pytorch_quantizer.graph.share import copy_sharing, copy_sharing_parameters, own_tensors


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


class Odd(nn.Module):
    """A module that keeps a list, its own child once more, and how it was copied."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.again, self.seen, self.copies = [self.inner], {"batches": [0]}, 0

    def __deepcopy__(self, memo: dict[int, object]) -> "Odd":
        twin = Odd()
        twin.copies = self.copies + 1
        return twin


class Listed(nn.Module):
    """A module whose plain attribute refers to its child."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.again, self.seen = [self.inner], {"batches": [0]}


class TestCopySharingParameters:
    def test_parameters_are_the_very_ones_and_buffers_are_not(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        copied = copy_sharing_parameters(net)
        assert all(a is b for a, b in zip(net.parameters(), copied.parameters(), strict=True))
        assert not any(a is b for a, b in zip(net.buffers(), copied.buffers(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(net.buffers(), copied.buffers(), strict=True))

    def test_what_modules_hold_beside_tensors_is_copied(self) -> None:
        net = nn.Sequential(Listed())
        copied = copy_sharing_parameters(net)
        assert copied[0].again[0] is copied[0].inner is not net[0].inner
        copied[0].seen["batches"].append(1)
        copied[0].eval()
        assert net[0].seen == {"batches": [0]}
        assert net[0].training

    def test_a_module_that_is_there_twice_stays_one(self) -> None:
        layer = nn.Linear(2, 2)
        copied = copy_sharing_parameters(nn.Sequential(layer, nn.ReLU(), layer))
        assert copied[0] is copied[2] is not layer

    def test_hooks_are_kept(self) -> None:
        net, calls = nn.Sequential(nn.Linear(2, 2)), list[int]()
        net[0].register_forward_hook(lambda *_: calls.append(1))
        copy_sharing_parameters(net)(torch.ones(1, 2))
        assert calls == [1]

    def test_an_empty_list_that_two_modules_share_stays_one(self) -> None:
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        net[0].log = net[1].log = []
        copied = copy_sharing_parameters(net)
        assert copied[0].log is copied[1].log is not net[0].log

    def test_a_class_that_says_how_it_is_copied_is_heard(self) -> None:
        assert copy_sharing_parameters(nn.Sequential(Odd()))[0].copies == 1


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

    def test_neither_does_writing_into_one_that_quantize_made(self) -> None:
        """Of layers and of a function called with a parameter, all left in float, so that nothing is replaced."""

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
                self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.norm(self.conv(nn.functional.conv2d(x, self.weight))).flatten(1)

        net = Net().eval()
        floats = dict.fromkeys(("weights", "activations", "first", "last", "bias"), "float32")
        before = [tensor.clone() for tensor in (*net.parameters(), *net.buffers())]
        for options in ({}, {"activation_correction": "mean"}, {"equalize": True}):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                quantized = pq.quantize(
                    net, pq.Recipe(**floats, deployable=False, **options), torch.randn(8, 3, 9, 9), progress=False
                )
            with torch.no_grad():
                for tensor in (*quantized.parameters(), *quantized.buffers()):
                    tensor.fill_(7)
            after = [*net.parameters(), *net.buffers()]
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), options
