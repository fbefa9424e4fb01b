"""Bias correction carried out on a simulated model: each tensor's mean and spread brought back to the float network's,
layer after layer with the layers before already quantized. The arithmetic is quantization/bias_correction.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.func import functional_call
from tqdm import tqdm

from pytorch_quantizer.calibration.correction import Correction
from pytorch_quantizer.calibration.second_order import layers_left, round_weights
from pytorch_quantizer.calibration.stepper import Stepper, Values
from pytorch_quantizer.graph.branches import Branches, affected, layers_alone, list_branches, quantizer_of
from pytorch_quantizer.graph.expected import analytic_shift, expected_moments
from pytorch_quantizer.graph.operations import TRANSPOSED, Layer, label, layer_of
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.rescale import apply_affine, as_applied, shift_weight, takes_gain
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.bias_correction import Affine, Moments, correct_weight, matched, next_step
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.quantization.statistics import TensorStatistics

STEPS = 4  # of the iteration that matches a tensor's moments


@dataclass(frozen=True)
class Step:
    """One correction that a recipe asks for. name: its field. mends_means: what error is left then has no mean;
    not so of batch norms, many of which stay as they are. left: the layers that it can't change, with the reason.
    """

    name: str
    carry_out: Callable[..., list[Correction]]
    needs_images: bool
    mends_means: bool
    left: Callable[[QuantizedModel], dict[str, str]] = lambda _: {}


def list_corrections(recipe: Recipe) -> list[Step]:
    """What a recipe asks for, in the order in which it is done: codes, weights, batch norms, activations."""
    steps = []
    if recipe.weight_rounding != "nearest":
        means = recipe.weight_rounding == "second_order"
        steps.append(Step("weight_rounding", round_weights, True, means, layers_left))
    if recipe.weight_correction != "none":
        means = recipe.weight_correction in ("mean", "both")
        steps.append(Step("weight_correction", correct_weights, recipe.deployable, means and not recipe.deployable))
    if recipe.batch_norm_reestimation:
        steps.append(Step("batch_norm_reestimation", reestimate_batch_norms, True, False))
    if recipe.activation_correction != "none":
        means = recipe.activation_correction in ("mean", "both")
        empirical = recipe.correction_source == "empirical"
        carry_out = correct_activations if empirical else correct_analytically
        steps.append(Step("activation_correction", carry_out, empirical, means))
    return steps


def list_targets(name: str, model: QuantizedModel, graph: fx.GraphModule) -> dict[fx.Node, Branches]:
    """The tensors, each with what produces it, at which a correction that walks both networks changes layers.

    name: the correction's field.
    """
    if name == "activation_correction":
        return {branches.tensor: branches for branches in list_branches(model)}
    alone = {branches.tensor: branches for branches in layers_alone(model)}
    if name == "batch_norm_reestimation":
        known = {node.name for node in graph.graph.nodes if "normal" in node.meta}
        return {tensor: branches for tensor, branches in alone.items() if tensor.name in known}
    weights = {site.node for site in _quantized_weights(model)}
    return {tensor: branches for tensor, branches in alone.items() if f"{tensor.target}.weight" in weights}


@torch.no_grad()
def correct_weights(
    model: QuantizedModel, graph: fx.GraphModule, batches: list[Tensor], *, progress: bool = True
) -> list[Correction]:
    """Give each quantized weight its channels' moments back, in place (bias_correction.correct_weight).

    The gain goes into the scale. A deployable model can't shift its weights: the bias takes the shift's mean effect,
    δ_c·ΣE[x], the inputs' means measured on the simulated model, layer after layer; of a layer that is called more than
    once, whose calls read different means, the gain is all. Another takes the weights as they come out, off their grid.
    """
    weights = _quantized_weights(model)
    wanted = {
        site.node: _correct_weight(layer_called(model, site), graph.get_parameter(site.node), model.recipe)
        for site in weights
    }
    if not model.recipe.deployable:
        for site in weights:
            shift_weight(layer_called(model, site), wanted[site.node])
        return [Correction(site.name, site.consumers) for site in weights]
    targets = list_targets("weight_correction", model, graph)

    def into_bias(trial: _Trial) -> _Choice:
        [node], [layer] = trial.branches.layers, trial.layers
        sums = trial.window_sum()
        gain, shift = (part.repeat(len(sums) // len(part)) for part in wanted[f"{node.target}.weight"])
        bias = 0 if layer.bias is None else layer.bias.double()
        return trial.judge(Affine(gain, shift * sums + bias * (1 - gain)))  # the gain is the weight's alone

    corrections = _walk(model, graph, batches, targets, into_bias, progress)
    walked = {f"{tensor.target}.weight" for tensor in targets}
    return corrections + [_give_gain(model, site, wanted[site.node]) for site in weights if site.node not in walked]


def _quantized_weights(model: QuantizedModel) -> list[Site]:
    return [site for site in model.sites if site.kind == "weight" and site.quantizer is not None]


def _give_gain(model: QuantizedModel, site: Site, affine: Affine) -> Correction:
    """Put a weight's gain alone into its scale."""
    layer, gain = layer_called(model, site), affine.gain
    kept = takes_gain(layer) and not bool(torch.all(gain == 1))
    if kept:
        bias = 0.0 if layer.bias is None else layer.bias.double()
        apply_affine(layer, Affine(gain, bias * (1 - gain)))
    return Correction(site.name, site.consumers, kept=kept)


@torch.no_grad()
def correct_activations(
    model: QuantizedModel, graph: fx.GraphModule, batches: list[Tensor], *, progress: bool = True
) -> list[Correction]:
    """Match mean and gain of every tensor that a layer reads, in place; each correction is kept where its error falls.

    model: the simulated model. graph: the float network it was made from, folded. batches: images. The tensor is the
    one behind additions, ReLU and quantizer; gain and shift go into the layers on its branches (graph/branches.py).
    """
    parts = model.recipe.activation_correction
    targets = list_targets("activation_correction", model, graph)
    return _walk(model, graph, batches, targets, lambda trial: _match(trial, parts), progress)


@torch.no_grad()
def correct_analytically(
    model: QuantizedModel, graph: fx.GraphModule, batches: list[Tensor], *, progress: bool = True
) -> list[Correction]:
    """Take the weights' error times the inputs' expected means out of each layer's bias, in place, without images.

    The means are what the batch norms tell (graph/expected.py); layers whose inputs none tells of stay as they are.
    What quantizing activations shifts is not seen. Nothing is measured, so each is kept.
    """
    moments = {node.name: moments for node, moments in expected_moments(graph).items()}
    originals = {node.name: node for node in graph.graph.nodes}
    corrections = []
    for branches in layers_alone(model):
        node = branches.tensor
        inputs = moments.get(originals[node.name].all_input_nodes[0].name)
        if inputs is not None:
            layer, path = layer_at(model, node), f"{node.target}.weight"
            shift = analytic_shift(layer, graph.get_parameter(path), layer.weight, inputs)
            apply_affine(layer, Affine(torch.ones_like(shift), shift))
            corrections.append(Correction(label(node), (label(node),)))
    return corrections


@torch.no_grad()
def reestimate_batch_norms(
    model: QuantizedModel, graph: fx.GraphModule, batches: list[Tensor], *, progress: bool = True
) -> list[Correction]:
    """Batch norms measured again on the quantized network, in place, and folded once more.

    A folded norm gave its layer's outputs mean β and deviation |γ| a channel over the training images (fold.py notes
    them); quantized, they have others. This gives each such layer those moments over ``batches``, layer after layer,
    and keeps them where the tensor's error falls: few images tell a norm's moments less well than its training did.
    """
    known = {node.name: node.meta["normal"] for node in graph.graph.nodes if "normal" in node.meta}
    targets = list_targets("batch_norm_reestimation", model, graph)

    def renormalise(trial: _Trial) -> _Choice:
        statistics, _ = trial.statistics(trial.identity)
        choice = trial.judge(trial.allowed(matched(known[trial.branches.tensor.name], _moments(statistics))))
        return choice if choice.after < choice.before else trial.nothing(choice.before)

    return _walk(model, graph, batches, targets, renormalise, progress)


def _correct_weight(layer: Layer, original: Tensor, recipe: Recipe) -> Affine:
    """What a simulated layer's weight is to become; of a deployable one the mean alone where it can't take a gain."""
    parts, form = recipe.weight_correction, recipe.weight_correction_form
    if recipe.deployable and not takes_gain(layer):
        parts, form = "mean" if parts == "both" else "none" if parts == "variance" else parts, "corrected"
    return correct_weight(original, layer.weight, axis=int(isinstance(layer, TRANSPOSED)), parts=parts, form=form)


class _Choice(NamedTuple):
    """What the layers are to carry, and the tensor's error without it and with it."""

    affine: Affine
    before: float
    after: float


class _Trial:
    """One tensor of the simulated model as a function of the gain and shift that its layers carry."""

    def __init__(self, stepper: Stepper, branches: Branches, expected: Values) -> None:
        self.stepper, self.branches, self.expected = stepper, branches, expected
        self.layers = [layer_at(stepper.graph, node) for node in branches.layers]
        self.outputs = {node: stepper.values[node] for node in branches.layers}
        merged = [self._statistics(values) for values in self.outputs.values()]
        self.output_mean = torch.stack([statistics.mean for statistics in merged]).sum(0)
        self.identity = Affine.identity(self.output_mean)

    def tensor(self, affine: Affine, index: int) -> Tensor:
        """The tensor for batch ``index``, quantized, if its layers computed gain·y + shift, their biases rounded."""
        instead: dict[fx.Node, Tensor] = {}
        for node, layer, share in zip(self.branches.layers, self.layers, self._shares(affine.shift), strict=True):
            output = self.outputs[node][index]
            gain, shift = (self._shaped(part, output) for part in as_applied(layer, Affine(affine.gain, share)))
            instead[node] = torch.addcmul(shift, output, gain)
        for node in self.branches.between:
            instead[node] = self.stepper.compute(node, index, instead)
        quantizer = self.branches.quantizer
        tensor = self.branches.tensor
        for reader in tensor.users:  # its own call of the quantizer, for one online reads more than the tensor
            if quantizer is not None and quantizer_of(self.stepper.graph, reader) is quantizer:
                return self.stepper.compute(reader, index, instead)
        return instead[tensor] if quantizer is None else quantizer(instead[tensor])

    def statistics(self, affine: Affine) -> tuple[TensorStatistics, Tensor]:
        """(the tensor's statistics per channel, its mean squared error per channel [C]) under ``affine``."""
        records, errors = [], []
        for index, expected in enumerate(self.expected):
            value = self.tensor(affine, index)
            records.append(TensorStatistics.from_tensor(value, axis=self._axis(value)))
            errors.append(TensorStatistics.from_tensor(value - expected, axis=self._axis(value)))
        error = TensorStatistics.merged(errors)
        return TensorStatistics.merged(records), error.variance + error.mean.square()

    def allowed(self, affine: Affine) -> Affine:
        """The same with gain 1 where a layer can't take one; the mean of the layers' outputs becomes what it would."""
        if all(takes_gain(layer) for layer in self.layers):
            return affine
        return Affine(self.identity.gain, affine.shift + (affine.gain - 1) * self.output_mean)

    def judge(self, affine: Affine) -> _Choice:
        """An affine with the tensor's error before and after."""
        before, after = (float(self.statistics(choice)[1].mean()) for choice in (self.identity, affine))
        return _Choice(affine, before, after)

    def nothing(self, error: float) -> _Choice:
        """The layers as they are, with the tensor's error."""
        return _Choice(self.identity, error, error)

    def window_sum(self) -> Tensor:
        """[C]: the mean over places of the sum of what each output channel of the one layer reads, Σ E[x]."""
        [node], [layer] = self.branches.layers, self.layers
        ones = {"weight": torch.ones_like(layer.weight)}
        if layer.bias is not None:
            ones["bias"] = torch.zeros_like(layer.bias)
        inputs = self.stepper.values[node.all_input_nodes[0]]
        return self._statistics([functional_call(layer, ones, (x,)) for x in inputs]).mean

    def apply(self, affine: Affine) -> None:
        """Give the layers their gain and shift for good, and compute what depends on them again."""
        for layer, shift in zip(self.layers, self._shares(affine.shift), strict=True):
            apply_affine(layer, Affine(affine.gain, shift))
        self.outputs.clear()  # as they were: each is to go when it is computed again
        for node in affected(self.branches):
            self.stepper.step(node)

    def wanted(self) -> Moments:
        """The float tensor's moments per channel."""
        return _moments(self._statistics(self.expected))

    def _shares(self, shift: Tensor) -> list[Tensor]:
        """The shift divided among the branches."""
        return [shift / len(self.layers)] * len(self.layers)

    def _shaped(self, values: Tensor, like: Tensor) -> Tensor:
        axis = self._axis(like)
        return values.to(like.dtype).reshape([-1 if dim == axis else 1 for dim in range(like.dim())])

    def _statistics(self, values: Values) -> TensorStatistics:
        return TensorStatistics.merged(TensorStatistics.from_tensor(x, axis=self._axis(x)) for x in values)

    def _axis(self, value: Tensor) -> int:
        return self.branches.axis % value.dim()


def layer_at(graph: fx.GraphModule, node: fx.Node) -> Layer:
    """The layer that a node calls."""
    layer = layer_of(graph, node)
    assert layer is not None
    return layer


def layer_called(model: QuantizedModel, site: Site) -> Layer:
    """The layer whose weight a site is."""
    layer: Any = model.get_submodule(site.node.removesuffix(".weight"))
    return layer


def _moments(statistics: TensorStatistics) -> Moments:
    return Moments(statistics.mean, statistics.variance.sqrt())


def _match(trial: _Trial, parts: str) -> _Choice:
    """The gain and shift, of those that STEPS steps come to, under which the tensor's error is least."""
    wanted, current = trial.wanted(), trial.identity
    statistics, error = trial.statistics(current)
    before = float(error.mean())
    best = trial.nothing(before)
    for _ in range(STEPS):
        step = next_step(
            current, wanted, _moments(statistics), parts=parts, pivot=trial.output_mean, active=_active(statistics)
        )
        current = trial.allowed(step)
        statistics, error = trial.statistics(current)
        if float(error.mean()) < best.after:
            best = _Choice(current, before, float(error.mean()))
    return best


def _active(statistics: TensorStatistics) -> Tensor:
    """The share of a channel's values that a shift moves: all, but for those that a ReLU cuts off."""
    positive = statistics.positive_count / statistics.count.clamp(min=1)
    return torch.where(statistics.min < 0, torch.ones_like(positive), positive)


def _walk(
    model: QuantizedModel,
    graph: fx.GraphModule,
    batches: list[Tensor],
    targets: Mapping[fx.Node, Branches],
    choose: Callable[[_Trial], _Choice],
    progress: bool,
) -> list[Correction]:
    """Run both networks side by side and, at each target, give its layers what ``choose`` says."""
    expected, simulated = Stepper(graph, batches), Stepper(model, batches)
    originals = {node.name: node for node in graph.graph.nodes}
    needed = still_needed(model, targets)
    corrections: list[Correction] = []
    for node in tqdm(model.graph.nodes, "correcting", delay=1, disable=not progress, unit="node", leave=False):
        if node.op == "output":
            continue
        simulated.step(node)
        if node in targets:
            trial = _Trial(simulated, targets[node], expected.run_to(originals[node.name]))
            choice = choose(trial)
            trial.apply(choice.affine)
            names = tuple(label(layer) for layer in targets[node].layers)
            kept = choice.affine is not trial.identity
            corrections.append(Correction(label(node), names, choice.before, choice.after, kept))
        simulated.forget(node, needed[node])
    return corrections


def still_needed(model: QuantizedModel, targets: Mapping[fx.Node, Branches]) -> dict[fx.Node, set[fx.Node]]:
    """For each node, the values that a target behind it asks for once more: its layers' outputs, and all they read."""
    needed: dict[fx.Node, set[fx.Node]] = {}
    waiting: set[fx.Node] = set()
    for node in reversed(model.graph.nodes):
        needed[node] = set(waiting)
        if node in targets:
            inner = {*affected(targets[node]), node}
            waiting |= inner.union(*(other.all_input_nodes for other in inner))
        waiting.discard(node)
    return needed
