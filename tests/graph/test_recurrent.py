"""Recurrent layers written out: the same function as torch's, in operations that can be quantized one by one."""

import itertools

import pytest
import torch
from networks import images, network
from torch import nn

from pytorch_quantizer import InputError, capture
from pytorch_quantizer.graph.operations import label
from pytorch_quantizer.graph.recurrent import STEPS, DecomposedRecurrence, Gates, Recurrence

KINDS = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN": nn.RNN,
    "RNN relu": lambda *args, **kwargs: nn.RNN(*args, nonlinearity="relu", **kwargs),
}
CELLS = {
    "LSTMCell": nn.LSTMCell,
    "GRUCell": nn.GRUCell,
    "RNNCell": nn.RNNCell,
    "RNNCell relu": lambda *args, **kwargs: nn.RNNCell(*args, nonlinearity="relu", **kwargs),
}


def seeded(make, *args, **kwargs):
    torch.manual_seed(0)
    return make(*args, **kwargs).eval()


def state_of(layer, *batch):
    """(h_0, c_0) of an LSTM, h_0 of the others, drawn."""
    shape = (layer.num_layers * (1 + layer.bidirectional), *batch, layer.hidden_size)
    h, c = images(*shape, seed=2), images(*shape, seed=3)
    return (h, c) if layer.mode == "LSTM" else h


def assert_same(got, expected):
    """All tensors of an output in the same places, to the noise of a sum in another order."""
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


class TestLayers:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_option_of_torchs(self, kind):
        for layers, bidirectional, batch_first, bias in itertools.product(
            (1, 3), (False, True), (False, True), (True, False)
        ):
            options = {"bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
            layer = seeded(KINDS[kind], 5, 7, layers, **options)
            written = DecomposedRecurrence(layer).eval()
            for x, batch in ((images(4, 6, 5), (4 if batch_first else 6,)), (images(9, 5), ())):
                assert_same(written(x), layer(x))
                state = state_of(layer, *batch)
                assert_same(written(x, state), layer(x, state))

    @pytest.mark.parametrize("kind", KINDS)
    def test_in_a_network_of_any_length_and_batch(self, kind):
        layer = seeded(KINDS[kind], 5, 7, 2, bidirectional=True, dropout=0.5)
        net = network(lambda net, x: (net.fc(net.rnn(x)[0]), net.rnn(x)[1]), rnn=layer, fc=nn.Linear(14, 3))
        for example in (None, images(4, 6, 5)):
            graph = capture(net, example).graph
            for x in (images(4, 6, 5), images(11, 1, 5), images(1, 2, 5)):
                assert_same(graph(x), net(x))

    def test_alone_is_a_network(self):
        layer, x = seeded(nn.LSTM, 5, 7, 2), images(4, 6, 5)
        captured = capture(layer, x)
        assert not captured.opaque
        assert_same(captured.graph(x), layer(x))

    def test_state_handed_from_one_to_the_next(self):
        def forward(net, x):
            y, state = net.encoder(x)
            return net.decoder(y, state)[0]

        net = network(forward, encoder=nn.LSTM(5, 7), decoder=nn.LSTM(7, 7))
        assert_same(capture(net, images(4, 6, 5)).graph(images(3, 2, 5)), net(images(3, 2, 5)))

    def test_state_of_zeros_from_the_input(self):
        def forward(net, x):
            zeros = torch.zeros(1, x.size(1), 7)
            return net.rnn(x, (zeros, zeros))[0]

        net = network(forward, rnn=nn.LSTM(5, 7))
        for example in (None, images(4, 6, 5)):
            assert_same(capture(net, example).graph(images(3, 2, 5)), net(images(3, 2, 5)))

    def test_names_say_layer_and_direction(self):
        net = network(lambda net, x: net.rnn(x)[0], rnn=nn.GRU(5, 7, 2, bidirectional=True))
        called = [node.target for node in capture(net).graph.graph.nodes if node.op == "call_module"]
        assert called == [f"rnn.{part}_l{k}{end}" for k in (0, 1) for end in ("", "_reverse") for part in ("ih", "hh")]

    def test_gradients_are_torchs(self):
        layer, x = seeded(nn.GRU, 5, 7), images(4, 6, 5).requires_grad_()
        written = DecomposedRecurrence(layer).eval()
        ours = torch.autograd.grad(written(x)[0].square().sum(), x)[0]
        theirs = torch.autograd.grad(layer(x)[0].square().sum(), x)[0]
        assert_same(ours, theirs)


class TestCells:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("kind", CELLS)
    def test_step_by_step(self, kind, bias):
        def forward(net, x):
            state, outputs = None, []
            for step in range(3):
                state = net.cell(x[:, step], state)
                outputs.append(state[0] if kind == "LSTMCell" else state)
            return torch.cat(outputs, 1)

        net = network(forward, cell=seeded(CELLS[kind], 5, 7, bias=bias))
        for example in (None, images(4, 3, 5)):
            captured = capture(net, example)
            assert not captured.opaque
            assert_same(captured.graph(images(2, 3, 5)), net(images(2, 3, 5)))

    def test_its_weights_are_two_linear_layers(self):
        net = network(lambda net, x: net.cell(x), cell=nn.GRUCell(5, 7))
        graph = capture(net, images(4, 5)).graph
        kinds = {
            node.target: type(graph.get_submodule(node.target))
            for node in graph.graph.nodes
            if node.op == "call_module"
        }
        assert kinds == {"cell.ih": nn.Linear, "cell.hh": nn.Linear, "cell.gates": Gates}


class TestWhatIsNotWrittenOut:
    """Stays as it was, with the reason."""

    def test_projected_states(self):
        net = network(lambda net, x: net.fc(net.rnn(x)[0]), rnn=nn.LSTM(5, 7, proj_size=3), fc=nn.Linear(3, 2))
        captured = capture(net, images(4, 6, 5))
        assert captured.opaque == {"rnn": "nn.LSTM can't be written out: it projects its state (proj_size)"}
        assert_same(captured.graph(images(4, 6, 5)), net(images(4, 6, 5)))

    def test_projected_states_of_a_layer_alone(self):
        with pytest.raises(InputError, match=r"it projects its state \(proj_size\)"):
            capture(nn.LSTM(5, 7, proj_size=3))

    def test_a_subclass_that_may_compute_anything(self):
        class Doubled(nn.LSTM):
            def forward(self, x, hx=None):
                return super().forward(2 * x, hx)

        net = network(lambda net, x: net.rnn(x)[0], rnn=Doubled(5, 7))
        captured = capture(net, images(4, 6, 5))
        assert list(captured.opaque) == ["rnn"]
        assert_same(captured.graph(images(4, 6, 5)), net(images(4, 6, 5)))

    def packing(self, net, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 2]))
        return nn.utils.rnn.pad_packed_sequence(net.rnn(packed)[0])[0]

    def test_packed_sequences_inside_a_module(self):
        encoder = network(self.packing, rnn=nn.LSTM(5, 7))
        net = network(lambda net, x: net.fc(net.encoder(x)), encoder=encoder, fc=nn.Linear(7, 3))
        captured = capture(net, images(4, 2, 5))
        assert captured.opaque == {"encoder": "it packs sequences (PackedSequence) of lengths that only a run tells"}
        assert_same(captured.graph(images(4, 2, 5)), net(images(4, 2, 5)))

    def test_packed_sequences_in_the_networks_own_forward(self):
        with pytest.raises(InputError, match=r"it packs sequences \(PackedSequence\).*into a submodule"):
            capture(network(self.packing, rnn=nn.LSTM(5, 7)), images(4, 2, 5))


class TestRecurrence:
    def test_a_sequence_of_nothing(self):
        with pytest.raises(InputError, match="needs a sequence of one time step or more, got none"):
            Recurrence("GRU", 7)(torch.zeros(0, 2, 21))

    def test_every_mode_has_its_formula(self):
        assert set(STEPS) == {"LSTM", "GRU", "RNN_TANH", "RNN_RELU"}

    def test_prints_what_it_is(self):
        layer = seeded(nn.LSTM, 5, 7, bidirectional=True)
        assert "(hh_l0_reverse): Recurrence(LSTM, 7, bias=True, reverse=True)" in str(DecomposedRecurrence(layer))


class TestShapesWithoutAnExample:
    def test_count_as_no_tensors(self):
        def forward(net, x):
            rows = x.size(0) * x.shape[1] // 2
            return net.fc(x.reshape(rows, -1))

        net = network(forward, fc=nn.Linear(10, 3))
        tensors = [label(node) for node in capture(net).graph.graph.nodes if node.meta["is_tensor"]]
        assert tensors == ["x", "reshape", "fc", "output"]
