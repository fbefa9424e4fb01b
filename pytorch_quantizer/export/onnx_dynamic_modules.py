"""What an ONNX export holds where tensors take their range from each batch: DynamicQuantizeLinear, kernels that read
its codes, recurrences. These modules only run inside torch.onnx.export; onnx_dynamic.py places them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pytorch_quantizer.export.onnx_modules import OPSET, Coded
from pytorch_quantizer.graph.recurrent import GATES, Recurrence

RUNTIME = "com.microsoft"  # the domain of ONNX Runtime's own operators
DOMAIN, OPERATOR = "pytorch_quantizer", "Recurrence"  # of what a trace holds where onnx_scan.py puts a Scan
Grid = tuple[Tensor, Tensor, Tensor]  # codes uint8, scale [], zero point []


class DynamicCodes(nn.Module):
    """x → its codes, scale and zero point on the range of x itself, as ONNX's DynamicQuantizeLinear computes them.

    In float32, so that the scale may be one unit in the last place off the simulation's, and the zero point of a range
    that is centred on zero 127 for 128; NaN and ranges beyond float32 or of denormals, which the simulation refuses or
    keeps apart, go through unseen.
    """

    def forward(self, x: Tensor) -> Grid:
        """Codes in the shape of x, uint8; scale [], float32; zero point [], uint8."""
        dtypes = [torch.uint8, torch.float32, torch.uint8]
        codes, scale, zero_point = _onnx("DynamicQuantizeLinear", [x], dtypes=dtypes, shapes=[x.shape, [], []])
        return codes, scale, zero_point


class Dequantized(nn.Module):
    """(codes, scale, zero point) → values, for who reads no codes."""

    def forward(self, grid: Grid) -> Tensor:
        """Values in the shape of the codes, float32."""
        [values] = _onnx("DequantizeLinear", list(grid), dtypes=[torch.float32], shapes=[grid[0].shape])
        return values


class Sums(nn.Module):
    """A linear layer or convolution of codes: Σ (q_x − z_x)(q_w − z_w) as MatMulInteger or ConvInteger, int32."""

    codes: Tensor
    zero_point: Tensor

    def __init__(self, layer: Any, weight: Coded) -> None:
        super().__init__()
        self.is_linear = isinstance(layer, nn.Linear)
        self.settings = {} if self.is_linear else _convolution_settings(layer)
        codes = weight.codes.t().contiguous() if self.is_linear else weight.codes
        self.register_buffer("codes", codes)
        self.register_buffer("zero_point", one_if_alike(weight.zero_point))

    @property
    def kind(self) -> str:
        """The word that reports have for it."""
        return "linear" if self.is_linear else "convolution"

    def forward(self, grid: Grid) -> Tensor:
        """Sums of the codes, int32, in the shape of the layer's output."""
        codes, _, zero_point = grid
        inputs = [codes, self.codes, zero_point, self.zero_point]
        operator = "MatMulInteger" if self.is_linear else "ConvInteger"
        shape = [*codes.shape[:-1], self.codes.shape[1]] if self.is_linear else self._convolved(codes.shape)
        [sums] = _onnx(operator, inputs, self.settings, dtypes=[torch.int32], shapes=[shape])
        return sums

    def _convolved(self, shape: Any) -> list[Any]:
        given, places = self.settings, range(len(self.settings["kernel_shape"]))
        pads = [given["pads"][i] + given["pads"][i + len(places)] for i in places]
        reach = [given["dilations"][i] * (given["kernel_shape"][i] - 1) for i in places]
        sizes = [(shape[2 + i] + pads[i] - reach[i] - 1) // given["strides"][i] + 1 for i in places]
        return [shape[0], self.codes.shape[0], *sizes]


class Rescaled(nn.Module):
    """sums·(s_x·s_w) + bias in float32, with one s_w or one a channel."""

    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Coded, bias: Tensor | None, trailing: int) -> None:
        super().__init__()
        shape = [-1, *(1 for _ in range(trailing))]
        scale = weight.scale if weight.scale.dim() == 0 else weight.scale.reshape(shape)
        self.register_buffer("scale", scale.clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone().reshape(shape))

    def forward(self, sums: Tensor, grid: Grid) -> Tensor:
        """What the layer gives."""
        y = sums.to(torch.float32) * (grid[1] * self.scale)
        return y if self.bias is None else y + self.bias


class DynamicLSTM(nn.Module):
    """One direction of an LSTM whose input and state take their ranges as it runs: ONNX Runtime's DynamicQuantizeLSTM.

    It lays one grid over the whole sequence, one over the state at each step, as the simulation does; but where it runs
    on several threads and the batch is large enough, each thread lays its own grid over the states of its own share.
    """

    kind = "recurrent"

    def __init__(self, layer: Recurrence, from_input: Coded, from_state: Coded, input_bias: Tensor | None) -> None:
        super().__init__()
        self.hidden_size, self.batch_first, self.reverse = layer.hidden_size, layer.batch_first, layer.reverse
        none = torch.zeros(GATES["LSTM"] * layer.hidden_size)
        biases = [none if bias is None else bias.detach() for bias in (input_bias, layer.bias)]
        for name, coded in (("w", from_input), ("r", from_state)):
            self.register_buffer(f"{name}_codes", _as_onnx(coded.codes).t().contiguous()[None])
            for part in ("scale", "zero_point"):
                values = getattr(coded, part).expand(len(coded.codes))
                self.register_buffer(f"{name}_{part}", _as_onnx(values)[None].contiguous())
        self.register_buffer("bias", torch.cat([_as_onnx(bias) for bias in biases])[None])

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """As Recurrence's, of x itself: [L, N, I] → (y [L, N, H], h_n [N, H], c_n [N, H])."""
        sequence, states = _in_order(self, x, state)
        (length, batch), hidden = sequence.shape[:2], self.hidden_size
        h, c = [part[None] for part in states] if states else [None, None]
        grids = [self.w_scale, self.w_zero_point, self.r_scale, self.r_zero_point]
        direction = {"hidden_size": hidden, "direction": "reverse" if self.reverse else "forward"}
        y, h_n, c_n = _onnx(
            f"{RUNTIME}::DynamicQuantizeLSTM",
            [sequence, self.w_codes, self.r_codes, self.bias, None, h, c, None, *grids],
            direction,
            dtypes=[torch.float32] * 3,
            shapes=[[length, 1, batch, hidden], [1, batch, hidden], [1, batch, hidden]],
        )
        return _out_of_order(self, x, y.squeeze(1), (h_n.squeeze(0), c_n.squeeze(0)))


class ScannedRecurrence(nn.Module):
    """One direction of any recurrent layer behind its linear one, step by step: an ONNX Scan (``write_recurrences``).

    With a range of the state at each step W_hh·h is a MatMulInteger, without one a product with dequantized weights.
    """

    kind = "recurrent"

    def __init__(self, layer: Recurrence, weight: nn.Module, *, path: str) -> None:
        super().__init__()
        self.mode, self.hidden_size, self.batch_first = layer.mode, layer.hidden_size, layer.batch_first
        self.reverse, self.weight, self.path = layer.reverse, weight, path
        self.is_dynamic = isinstance(weight, Coded) and "state_quantizer" in layer._modules
        self.bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, from_input: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """As Recurrence's."""
        sequence, states = _in_order(self, from_input, state)
        (length, batch), hidden, several = sequence.shape[:2], self.hidden_size, 1 + (self.mode == "LSTM")
        states = states or [torch.zeros_like(sequence[0, :, :hidden])] * several
        *ended, y = _onnx(
            f"{DOMAIN}::{OPERATOR}",
            [*states, sequence],
            {"path": self.path},
            dtypes=[torch.float32] * (several + 1),
            shapes=[*([batch, hidden] for _ in states), [length, batch, hidden]],
        )
        return _out_of_order(self, from_input, y, ended)


def _in_order(module: Any, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """A sequence as [L, N, …] and its state as [N, H], whatever the layout and with or without a batch."""
    if x.dim() == 2:
        return x.unsqueeze(1), [part.unsqueeze(0) for part in state]
    return (x.transpose(0, 1) if module.batch_first else x), list(state)


def _out_of_order(module: Any, x: Tensor, y: Tensor, state: Any) -> tuple[Tensor, ...]:
    """Back to the layout of ``x``."""
    if x.dim() == 2:
        return y.squeeze(1), *(part.squeeze(0) for part in state)
    return (y.transpose(0, 1) if module.batch_first else y), *state


def _as_onnx(values: Tensor) -> Tensor:
    """Torch's gates i, f, g, o, beside one another along dimension 0, in ONNX's order i, o, f, g."""
    i, f, g, o = values.chunk(4)
    return torch.cat([i, o, f, g])


def one_if_alike(values: Tensor) -> Tensor:
    """[] of [C] that are all alike, else the values."""
    return values.reshape(-1)[0].clone() if bool((values == values.reshape(-1)[0]).all()) else values


def _convolution_settings(layer: Any) -> dict[str, Any]:
    """ONNX's attributes of a convolution; its padding before and behind each dimension."""
    twice = list(layer._reversed_padding_repeated_twice)
    before, behind = twice[-2::-2], twice[-1::-2]
    return {
        "kernel_shape": list(layer.kernel_size),
        "strides": list(layer.stride),
        "dilations": list(layer.dilation),
        "pads": [*before, *behind],
        "group": layer.groups,
    }


def _onnx(
    operator: str, inputs: list[Any], attributes: dict[str, Any] | None = None, *, dtypes: list[Any], shapes: list[Any]
) -> Any:
    """The results of an ONNX operator, traced and not computed."""
    from torch.onnx import ops

    version = OPSET if "::" not in operator else 1
    return ops.symbolic_multi_out(operator, inputs, attributes, dtypes=dtypes, shapes=shapes, version=version)
