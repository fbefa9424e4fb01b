"""Recurrent layers of torch.nn written out: what reads the sequence becomes linear layers, what runs over time stays
one operation, Recurrence, which puts its own state on a grid. Which grids those are is place.py's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.attention import linear_around

State: TypeAlias = tuple[Tensor, ...]  # (h,), of an LSTM (h, c)
Step: TypeAlias = Callable[[Tensor, Tensor, State], State]


def _lstm(from_input: Tensor, from_state: Tensor, state: State) -> State:
    i, f, g, o = (from_input + from_state).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(from_input: Tensor, from_state: Tensor, state: State) -> State:
    (r_x, z_x, n_x), (r_h, z_h, n_h) = from_input.chunk(3, -1), from_state.chunk(3, -1)
    z = torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
    return ((1 - z) * n + z * state[0],)


def _rnn_tanh(from_input: Tensor, from_state: Tensor, state: State) -> State:
    return (torch.tanh(from_input + from_state),)


def _rnn_relu(from_input: Tensor, from_state: Tensor, state: State) -> State:
    return (torch.relu(from_input + from_state),)


STEPS: dict[str, Step] = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _rnn_tanh, "RNN_RELU": _rnn_relu}
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
CELLS: tuple[type[nn.RNNCellBase], ...] = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


class Gates(nn.Module):
    """One time step's state (h′,), of an LSTM (h′, c′), from a = W_ih·x + b_ih, u = W_hh·h + b_hh and the state (h, c).

    a, u: [..., G·H], the gates beside one another in torch's order. All of it is float, and there are no weights here.
    LSTM (Hochreiter & Schmidhuber 1997; gates i, f, g, o): c′ = σ(a_f + u_f)·c + σ(a_i + u_i)·tanh(a_g + u_g),
    h′ = σ(a_o + u_o)·tanh(c′). GRU (Cho et al. 2014; gates r, z, n): z = σ(a_z + u_z),
    n = tanh(a_n + σ(a_r + u_r)·u_n), h′ = (1 − z)·n + z·h. RNN_TANH, RNN_RELU: h′ = tanh(a + u), max(a + u, 0).
    """

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, from_input: Tensor, from_state: Tensor, *state: Tensor) -> State:
        """The next state; see the class."""
        return STEPS[self.mode](from_input, from_state, state)


class Recurrence(nn.Module):
    """A recurrent layer in one direction, behind W_ih·x + b_ih, which a linear layer computes for all time steps.

    At each step u = W_hh·h + b_hh, then what ``Gates`` says. weight W_hh [G·H, H], bias b_hh [G·H] or None. Where the
    layer is quantized, ``weight`` lies on the grid of ``weight_quantizer``, and W_hh reads h through
    ``state_quantizer``, on the range that h has over the batch at this very step; gates and state stay in float.
    """

    def __init__(
        self, mode: str, hidden_size: int, bias: bool = True, batch_first: bool = False, reverse: bool = False
    ) -> None:
        super().__init__()
        self.mode, self.hidden_size, self.batch_first, self.reverse = mode, hidden_size, batch_first, reverse
        rows = GATES[mode] * hidden_size
        self.weight = nn.Parameter(torch.zeros(rows, hidden_size))
        self.bias: Tensor | None
        self.register_parameter("bias", nn.Parameter(torch.zeros(rows)) if bias else None)

    def forward(self, from_input: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """[L, N, G·H] → (y [L, N, H], h_n [N, H]), of an LSTM (y, h_n, c_n); state: h_0 [N, H], and c_0, else zeros.

        batch_first: [N, L, G·H] and [N, L, H]; without N where there is no batch. Raises InputError where L is 0.
        """
        time = int(self.batch_first and from_input.dim() == 3)
        steps = from_input.unbind(time)
        if not steps:
            raise InputError("a recurrent layer needs a sequence of one time step or more, got none")
        state = state or self._zeros(steps[0])
        outputs = []
        for step in reversed(steps) if self.reverse else steps:
            state = STEPS[self.mode](step, self._from_state(state[0]), state)
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if self.reverse else outputs, time), *state

    def _from_state(self, h: Tensor) -> Tensor:
        quantizer = self._modules.get("state_quantizer")
        return nn.functional.linear(h if quantizer is None else quantizer(h), self.weight, self.bias)

    def _zeros(self, step: Tensor) -> State:
        h = step.new_zeros(*step.shape[:-1], self.hidden_size)
        return (h, h) if self.mode == "LSTM" else (h,)

    def extra_repr(self) -> str:
        """What print shows."""
        return f"{self.mode}, {self.hidden_size}, bias={self.bias is not None}, reverse={self.reverse}"


class DecomposedRecurrence(nn.Module):
    """The same function and weights as an nn.LSTM, nn.GRU or nn.RNN in eval mode, as separate operations.

    Layer k in one direction is a linear layer ``ih_lk`` and a Recurrence ``hh_lk``, backwards ``…_reverse``.
    """

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.is_lstm = layer.mode == "LSTM"
        self.passes = [[f"l{k}{end}" for end in _ends(layer)] for k in range(layer.num_layers)]
        for name in (name for names in self.passes for name in names):
            weight, bias = getattr(layer, f"weight_ih_{name}"), getattr(layer, f"bias_ih_{name}", None)
            self.add_module(f"ih_{name}", linear_around(weight, bias))
            self.add_module(f"hh_{name}", _recurrence(layer, name))

    @staticmethod
    def obstacle(layer: nn.RNNBase) -> str | None:
        """Why a recurrent layer can't be written out, or None where it can."""
        if layer.mode not in STEPS:
            return f"its mode is {layer.mode!r}"
        return "it projects its state (proj_size)" if layer.proj_size else None

    def forward(self, input: Tensor, hx: Tensor | State | None = None) -> tuple[Tensor, Tensor | State]:
        """As torch's: (output, h_n), of an LSTM (output, (h_n, c_n)).

        Raises NotImplementedError for a PackedSequence.
        """
        if isinstance(input, nn.utils.rnn.PackedSequence):
            raise NotImplementedError("a recurrent layer that reads a PackedSequence is not written out")
        started = () if hx is None else (hx[0], hx[1]) if self.is_lstm else (hx,)
        ended: list[State] = []
        for names in self.passes:
            outputs = []
            for name in names:
                state = tuple(part[len(ended)] for part in started)
                gates = self.get_submodule(f"ih_{name}")(input)
                result = self.get_submodule(f"hh_{name}")(gates, *state)
                outputs.append(result[0])
                ended.append((result[1], result[2]) if self.is_lstm else (result[1],))
            input = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
        states = tuple(_stacked([state[i] for state in ended]) for i in range(1 + self.is_lstm))
        return input, states if self.is_lstm else states[0]


class DecomposedCell(nn.Module):
    """The same function and weights as an nn.LSTMCell, nn.GRUCell or nn.RNNCell: two linear layers and Gates."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.hidden_size, self.is_lstm = cell.hidden_size, isinstance(cell, nn.LSTMCell)
        mode = f"RNN_{cell.nonlinearity.upper()}" if isinstance(cell, nn.RNNCell) else "LSTM" if self.is_lstm else "GRU"
        self.ih, self.hh = linear_around(cell.weight_ih, cell.bias_ih), linear_around(cell.weight_hh, cell.bias_hh)
        self.gates = Gates(mode)

    @staticmethod
    def obstacle(cell: nn.RNNCellBase) -> None:
        """Why a cell can't be written out: nothing stands against any."""

    def forward(self, input: Tensor, hx: Tensor | State | None = None) -> Tensor | State:
        """As torch's: the next h [N, H], of an LSTM (h, c)."""
        from_input = self.ih(input)
        if hx is None:
            h = torch.zeros_like(from_input[..., : self.hidden_size])
            state: State = (h, h) if self.is_lstm else (h,)
        else:
            state = (hx[0], hx[1]) if self.is_lstm else (hx,)  # type: ignore[assignment]
        following = self.gates(from_input, self.hh(state[0]), *state)
        return (following[0], following[1]) if self.is_lstm else following[0]


def _recurrence(layer: nn.RNNBase, name: str) -> Recurrence:
    """What one layer does in one direction, around the tensors that exist already; name: l0, l1_reverse …"""
    with torch.device("meta"):
        made = Recurrence(
            layer.mode, layer.hidden_size, layer.bias, layer.batch_first, reverse=name.endswith("_reverse")
        )
    made.weight = nn.Parameter(getattr(layer, f"weight_hh_{name}").detach())
    if layer.bias:
        made.bias = nn.Parameter(getattr(layer, f"bias_hh_{name}").detach())
    return made


def _ends(layer: nn.RNNBase) -> tuple[str, ...]:
    return ("", "_reverse") if layer.bidirectional else ("",)


def _stacked(states: list[Tensor]) -> Tensor:
    """[D·layers, N, H] of a [N, H] each."""
    return torch.stack(states) if len(states) > 1 else states[0].unsqueeze(0)
