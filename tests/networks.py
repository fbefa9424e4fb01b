"""Small networks for the tests of capture, placement and quantization: layers by name and a forward as a function."""

import torch
from torch import nn

from pytorch_quantizer.graph.operations import is_arithmetic, is_concatenation, label, layer_of, tensor_inputs


class Network(nn.Module):
    """forward(x) is ``function(self, x)``; keyword arguments become submodules, parameters or buffers."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def network(function, **parts):
    """A Network in eval mode with weights and norm statistics drawn with seed 0, so that no norm is the identity."""
    net = Network(function, **parts).eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            owner = net.get_submodule(name.rpartition(".")[0])
            noise = torch.randn(tensor.shape, generator=generator)
            if isinstance(owner, nn.modules.batchnorm._BatchNorm):
                noise = noise.abs() + 0.5 if name.endswith(("weight", "running_var")) else noise
                tensor.copy_(noise)
            elif owner is not net:
                tensor.copy_(noise / max(tensor.numel() // max(len(tensor), 1), 1) ** 0.5 if tensor.dim() else noise)
    return net


def sequence(*modules):
    """A network of modules one after the other, named by position."""
    return network(lambda net, x: net.body(x), body=nn.Sequential(*modules))


class Untraceable(nn.Module):
    """A leaf that torch.fx can't enter: its control flow depends on values. x ↦ gain·x where the sum is positive."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        if x.sum() > 0:
            return self.gain * x
        return x


class UntraceablePair(nn.Module):
    """The same with two results."""

    def forward(self, x):
        if x.sum() > 0:
            return x * 2, x + 1
        return x, x - 1


def images(*shape, seed=1):
    """A batch of noise, [4, 3, 8, 8] unless said otherwise."""
    return torch.randn(*(shape or (4, 3, 8, 8)), generator=torch.Generator().manual_seed(seed))


def reading_float(quantized, x, *, arithmetic=True):
    """Labels of the layers (and arithmetic) that read a float tensor, judged by values alone: on no quantizer's grid.

    The graph's tables of operations are not consulted for what keeps values: it is the outcome that counts.
    """
    quantizers = [site.quantizer for site in quantized.sites if site.is_activation and site.quantizer is not None]
    found = []

    class Reader(torch.fx.Interpreter):
        def run_node(self, n):
            if layer_of(quantized, n) is not None or (arithmetic and reads_integers(quantized, n)):
                operands = [value for source in tensor_inputs(n) for value in tensors(self.env[source])]
                if not all(any(torch.equal(q(t), t) for q in quantizers) for t in operands):
                    found.append(label(n))
            return super().run_node(n)

    with torch.no_grad():
        Reader(quantized, garbage_collect_values=False).run(x.clone())
    return found


def reads_integers(graph, node):
    """Arithmetic, but for concatenations: their parts are carried on the result's grid."""
    return is_arithmetic(graph, node) and not is_concatenation(graph, node)


def tensors(value):
    """The tensors in a tensor or a collection of them."""
    return [value] if isinstance(value, torch.Tensor) else [t for item in value for t in tensors(item)]
