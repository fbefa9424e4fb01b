"""What bench_kernels.py times: for each op a function that yields its cases on a tensor, and a line in CASES or CALLS.

A case's implementations: `ours`; `torch`, PyTorch's own; `expression`, the formula written in PyTorch; and what bars
are measured by: `copy`, `add`, `aminmax` and `sum` over the same tensor. Outputs exist and are touched before, except
where an op allocates its own: PyTorch's do, and those of ours that take no out=.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from turns import Run

from pytorch_quantizer import ops
from pytorch_quantizer.backend import raw

CHANNELS, SIDE = 64, 32  # an activation, [N, 64, 32, 32]: an image has 64 Ki elements
PASSES = {"copy": 2, "add": 3, "aminmax": 1, "sum": 1}  # over the tensor's memory; other runs move the case's bytes
AXES = (None, 0, 1)
RAW = (0, 0, 0)  # rounding half to even, seed, offset, as the raw ops take them
RANGE = QMIN, QMAX = 0, 15
BINS = 2048


@dataclass(frozen=True)
class Case:
    """An op on a tensor. bytes: what it must move; runs: an implementation's name and a call of it."""

    op: str
    x: Tensor
    bytes: int
    runs: dict[str, Run]
    mode: str = "inference_mode"

    def description(self) -> dict[str, object]:
        """What all rows of the case have in common."""
        layout = "contiguous" if self.x.is_contiguous() else "channels_last"
        row = {"op": self.op, "device": self.x.device.type, "dtype": str(self.x.dtype).removeprefix("torch.")}
        return row | {"layout": layout, "elements": self.x.numel()}

    def bytes_of(self, implementation: str) -> int:
        """What one of the runs must move."""
        passes = PASSES.get(implementation)
        return passes * self.x.nbytes if passes else self.bytes


def activation(elements: int, dtype: torch.dtype, layout: str, device: str) -> Tensor:
    """[N, 64, 32, 32], N as `elements` says, one at the least."""
    images = max(1, elements // (CHANNELS * SIDE * SIDE))
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return torch.randn(images, CHANNELS, SIDE, SIDE, device=device).to(dtype, memory_format=memory_format)


def grid(x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Scale and zero point: [], or one a channel along `axis`."""
    shape = [] if axis is None else [x.shape[axis]]
    scale = torch.full(shape, 0.3, device=x.device)
    return scale, torch.full(shape, 3, dtype=torch.int32, device=x.device)


def named(op: str, axis: int | None) -> str:
    """The op's name, with its axis where it has one."""
    return op if axis is None else f"{op} axis {axis}"


def beside(x: Tensor, parameter: Tensor, axis: int | None) -> Tensor:
    """A parameter in a shape that PyTorch broadcasts along `axis`."""
    return parameter if axis is None else parameter.view([-1 if d == axis else 1 for d in range(x.dim())])


# --- the formulas as one would write them ---------------------------------------------------------------------------


def quantized(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """clamp(round(x/s) + z)."""
    return torch.clamp(torch.round(x / scale) + zero_point, QMIN, QMAX)


def simulated(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """(clamp(round(x/s) + z) − z)·s."""
    return (quantized(x, scale, zero_point) - zero_point) * scale


def passed(grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """g·1[in range]."""
    q = torch.round(x / scale) + zero_point
    return grad * ((q >= QMIN) & (q <= QMAX))


def described(x: Tensor, dims: list[int]) -> tuple[Tensor, ...]:
    """Five of the nine numbers of tensor_statistics: min, max, mean, variance, E|x − μ|."""
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return x.amin(dims), x.amax(dims), variance, mean, (x - mean).abs().mean(dims)


# --- an op, a function ----------------------------------------------------------------------------------------------


def fake_quantize(x: Tensor) -> Iterator[Case]:
    """Per tensor and per channel, into out=."""
    out = torch.zeros_like(x)
    for axis in AXES:
        scale, zero_point = grid(x, axis)
        runs = {
            "ours": partial(ops.fake_quantize, x, scale, zero_point, QMIN, QMAX, axis=axis, out=out),
            "copy": partial(out.copy_, x),
            "torch": torch_fake_quantize(x, scale, zero_point, axis),
            "expression": partial(simulated, x, beside(x, scale, axis), beside(x, zero_point, axis)),
        }
        yield Case(named("fake_quantize", axis), x, 2 * x.nbytes, runs)


def torch_fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Run:
    """PyTorch's own, forward."""
    if axis is None:
        return partial(torch.fake_quantize_per_tensor_affine, x, scale, zero_point, QMIN, QMAX)
    return partial(torch.fake_quantize_per_channel_affine, x, scale, zero_point, axis, QMIN, QMAX)


def fake_quantize_in_place(x: Tensor) -> Iterator[Case]:
    """Over a tensor that is on the grid after the first time; that changes no time."""
    y, out = x.clone(), torch.zeros_like(x)
    runs = {"ours": partial(ops.fake_quantize_, y, *grid(x, None), QMIN, QMAX), "copy": partial(out.copy_, x)}
    yield Case("fake_quantize_", x, 2 * x.nbytes, runs)


def fake_quantize_stochastic(x: Tensor) -> Iterator[Case]:
    """A random number an element."""
    out = torch.zeros_like(x)
    ours = partial(ops.fake_quantize, x, *grid(x, None), QMIN, QMAX, rounding="stochastic", out=out)
    yield Case("fake_quantize stochastic", x, 2 * x.nbytes, {"ours": ours, "copy": partial(out.copy_, x)})


def fake_quantize_backward(x: Tensor) -> Iterator[Case]:
    """The straight-through gradient. PyTorch's: from its forward's mask, and the learnable op's, of three tensors."""
    grad, out = torch.ones_like(x), torch.zeros_like(x)
    for axis in AXES:
        scale, zero_point = grid(x, axis)
        each = beside(x, scale, axis), beside(x, zero_point, axis)
        mask = passed(grad, x, *each) != 0
        runs = {
            "ours": writing(
                raw.fake_quantize_backward_out, grad, x, scale, zero_point, *RANGE, axis, *RAW, outs=(out,)
            ),
            "copy": partial(out.copy_, x),
            "add": partial(torch.add, grad, x, out=out),
            "torch": partial(torch.ops.aten.fake_quantize_per_tensor_affine_cachemask_backward, grad, mask),
            "torch learnable": torch_learnable_backward(grad, x, scale, zero_point, axis),
            "expression": partial(passed, grad, x, *each),
        }
        yield Case(named("fake_quantize_backward", axis), x, 3 * x.nbytes, runs)


def writing(op: Run, *arguments: object, outs: tuple[Tensor, ...]) -> Run:
    """A raw op that writes `outs`, as a call that also returns them. An axis of None is the raw ops' -1."""
    given = [-1 if argument is None else argument for argument in arguments]

    def call() -> tuple[Tensor, ...] | Tensor:
        op(*given, *outs)
        return outs if len(outs) > 1 else outs[0]

    return call


def learnable_fake_quantize_backward(x: Tensor) -> Iterator[Case]:
    """LSQ and LSQ+: the gradients of x, scale and zero point."""
    grad, out = torch.ones_like(x), torch.zeros_like(x)
    for axis in AXES:
        scale, zero_point = grid(x, axis)
        learned = scale, zero_point.float()
        outs = (out, *map(torch.zeros_like, learned))
        runs = {
            "ours": writing(raw.learnable_fake_quantize_backward_out, grad, x, *learned, *RANGE, axis, 1.0, outs=outs),
            "copy": partial(out.copy_, x),
            "add": partial(torch.add, grad, x, out=out),
            "torch learnable": torch_learnable_backward(grad, x, scale, zero_point, axis),
        }
        yield Case(named("learnable_fake_quantize_backward", axis), x, 3 * x.nbytes, runs)


def fused_fake_quantize(x: Tensor) -> Iterator[Case]:
    """A ReLU, or an addition and a ReLU, before the quantizer."""
    other, out = torch.ones_like(x), torch.zeros_like(x)
    scale, zero_point = grid(x, None)
    torchs = partial(torch.fake_quantize_per_tensor_affine, scale=scale, zero_point=zero_point)
    for op, second in (("relu_fake_quantize", None), ("add_relu_fake_quantize", other)):
        total = (lambda: x) if second is None else (lambda: x + other)
        runs = {
            "ours": partial(
                ops.fused_fake_quantize, x, scale, zero_point, QMIN, QMAX, other=second, relu=True, out=out
            ),
            "copy": partial(out.copy_, x),
            "torch": lambda total=total: torchs(torch.relu(total()), quant_min=QMIN, quant_max=QMAX),
            "expression": lambda total=total: simulated(torch.relu(total()), scale, zero_point),
        }
        yield Case(op, x, (2 if second is None else 3) * x.nbytes, runs)


def online_fake_quantize(x: Tensor) -> Iterator[Case]:
    """On a grid of x's own, ReLU included: two reads for the statistics, a read and a write for the result."""
    out = torch.zeros_like(x)
    rule = {"relu": True, "spread": "abs_dev", "support": "rectified", "reach": 3.9}
    runs = {
        "ours": partial(ops.online_fake_quantize, x, QMIN, QMAX, **rule, out=out),
        "copy": partial(out.copy_, x),
        **reads(x),
    }
    yield Case("online_fake_quantize", x, 4 * x.nbytes, runs)


def codebook(x: Tensor) -> Iterator[Case]:
    """To the nearest of 16 or 256 levels, into out=; of 16, to its index and back too."""
    out = torch.zeros_like(x)
    for words in (16, 256):
        levels = torch.linspace(-3, 3, words, device=x.device)
        highest = (levels[1:] + levels[:-1]) / 2
        runs = {
            "ours": partial(ops.codebook_fake_quantize, x, levels, highest, out=out),
            "copy": partial(out.copy_, x),
            "expression": lambda levels=levels, highest=highest: levels[torch.bucketize(x, highest)],
        }
        yield Case(f"codebook {words} words", x, 2 * x.nbytes, runs)
        if words == 16:
            yield from codebook_codes(x, levels, highest)


def codebook_codes(x: Tensor, levels: Tensor, highest: Tensor) -> Iterator[Case]:
    """The index of the nearest level as uint8, and the level of an index."""
    q, out = ops.codebook_quantize(x, highest), torch.zeros_like(x)
    copy = {"copy": partial(out.copy_, x)}
    forth = {
        "ours": partial(ops.codebook_quantize, x, highest),
        "expression": lambda: torch.bucketize(x, highest).to(torch.uint8),
    }
    yield Case("codebook_quantize", x, x.nbytes + q.nbytes, copy | forth)
    back = {
        "ours": partial(ops.codebook_dequantize, q, levels, dtype=x.dtype),
        "expression": lambda: levels[q.long()].to(x.dtype),
    }
    yield Case("codebook_dequantize", x, x.nbytes + q.nbytes, copy | back)


def halves(q: Tensor) -> Tensor:
    """Two codes a byte, written in PyTorch."""
    pairs = q.view(-1, 2)
    return pairs[:, 0] | (pairs[:, 1] << 4)


def packing(x: Tensor) -> Iterator[Case]:
    """Codes of 4, 2 and 1 bits, a byte each, packed and back; the copy is that of the codes."""
    q = ops.quantize(x.reshape(-1), *grid(x, None), QMIN, QMAX)
    packed, out = ops.pack(q, 4), torch.zeros_like(q)
    copy = {"copy": partial(out.copy_, q)}
    forth = {"ours": partial(ops.pack, q, 4, out=packed), "expression": lambda: halves(q)}
    yield Case("pack int4", q, q.nbytes + packed.nbytes, copy | forth)
    back = {
        "ours": partial(ops.unpack, packed, 4, q.shape, out=out),
        "expression": lambda: torch.stack([packed & 15, packed >> 4], -1).view(-1),
    }
    yield Case("unpack int4", q, q.nbytes + packed.nbytes, copy | back)
    for bits in (2, 1):
        narrow = q & (2**bits - 1)
        room = ops.pack(narrow, bits)
        moved = q.nbytes + room.nbytes
        yield Case(f"pack int{bits}", q, moved, copy | {"ours": partial(ops.pack, narrow, bits, out=room)})
        run = partial(ops.unpack, room, bits, q.shape, out=out)
        yield Case(f"unpack int{bits}", q, moved, copy | {"ours": run})


def torch_learnable_backward(grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Run:
    """The backward of torch._fake_quantize_learnable_*: gradients of x, scale and zero point."""
    learned = scale.reshape(-1), zero_point.float().reshape(-1)
    if axis is None:
        op = torch.ops.aten._fake_quantize_learnable_per_tensor_affine_backward
        return partial(op, grad, x, *learned, QMIN, QMAX, 1.0)
    op = torch.ops.aten._fake_quantize_learnable_per_channel_affine_backward
    return partial(op, grad, x, *learned, axis, QMIN, QMAX, 1.0)


def codes(x: Tensor) -> Iterator[Case]:
    """To uint8 and back."""
    scale, zero_point = grid(x, None)
    q, out = ops.quantize(x, scale, zero_point, QMIN, QMAX), torch.zeros_like(x)
    copy = {"copy": partial(out.copy_, x)}
    forth = {
        "ours": partial(ops.quantize, x, scale, zero_point, QMIN, QMAX),
        "expression": lambda: quantized(x, scale, zero_point).to(torch.uint8),
    }
    yield Case("quantize", x, x.nbytes + q.nbytes, copy | forth)
    back = {
        "ours": partial(ops.dequantize, q, scale, zero_point, dtype=x.dtype),
        "expression": lambda: ((q.float() - zero_point) * scale).to(x.dtype),
    }
    yield Case("dequantize", x, x.nbytes + q.nbytes, copy | back)


def tensor_statistics(x: Tensor) -> Iterator[Case]:
    """Nine numbers in two reads, of a large tensor on the CPU in one, counted as two; the expression computes five."""
    for axis in AXES:
        runs = {
            "ours": partial(ops.tensor_statistics, x, axis=axis),
            **reads(x),
            "expression": partial(described, x, [d for d in range(x.dim()) if d != axis]),
        }
        yield Case(named("tensor_statistics", axis), x, 2 * x.nbytes, runs)


def histogram(x: Tensor) -> Iterator[Case]:
    """2,048 bins over [−4, 4), and as many that grow to hold all."""
    exponent = torch.tensor(-8, device=x.device)
    runs = {
        "ours": partial(ops.histogram, x, exponent, bins=BINS),
        **reads(x),
        "torch": partial(torch.histc, x, BINS, -4, 4),
    }
    yield Case("histogram", x, x.nbytes, runs)
    counts, largest = ops.histogram(x, exponent, bins=BINS), x.abs().amax().float()
    grows = partial(ops.growing_histogram, x, counts, exponent, largest=largest)
    yield Case("growing_histogram", x, x.nbytes, {"ours": grows, **reads(x)})


def reads(x: Tensor) -> dict[str, Run]:
    """PyTorch's plainest reads of a whole tensor."""
    return {"aminmax": partial(torch.aminmax, x), "sum": partial(torch.sum, x)}


def calls(x: Tensor) -> Iterator[Case]:
    """What a call costs, by the mode it is made in; both allocate their outputs."""
    scale, zero_point = grid(x, None)
    gradient = torch.ones_like(x)
    forward = {
        "ours": partial(ops.fake_quantize, x, scale, zero_point, QMIN, QMAX),
        "torch": torch_fake_quantize(x, scale, zero_point, None),
    }
    for mode in ("inference_mode", "no_grad"):
        yield Case(f"fake_quantize call, {mode}", x, 2 * x.nbytes, forward, mode)
    leaf = x.requires_grad_()
    yield Case("fake_quantize call, forward", x, 2 * x.nbytes, forward, "enable_grad")
    both = {name: partial(differentiated, run, leaf, gradient) for name, run in forward.items()}
    yield Case("fake_quantize call, forward + backward", x, 5 * x.nbytes, both, "enable_grad")


def differentiated(forward: Run, x: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward."""
    return torch.autograd.grad(forward(), x, gradient)


# A new op: a function above that yields its cases, a line here, its bars in kernel_bars.py.
CASES: dict[str, Callable[[Tensor], Iterator[Case]]] = {  # of an activation, at each size, dtype and layout
    "fake_quantize": fake_quantize,
    "fake_quantize_": fake_quantize_in_place,
    "fake_quantize stochastic": fake_quantize_stochastic,
    "fake_quantize_backward": fake_quantize_backward,
    "learnable_fake_quantize_backward": learnable_fake_quantize_backward,
    "fused_fake_quantize": fused_fake_quantize,
    "online_fake_quantize": online_fake_quantize,
    "codebook": codebook,
    "pack": packing,
    "quantize": codes,
    "tensor_statistics": tensor_statistics,
    "histogram": histogram,
}
CALLS: dict[str, Callable[[Tensor], Iterator[Case]]] = {  # of a small float32 vector, at each small size
    "fake_quantize call": calls,
}
