"""Reconstruction: rounding, scales, biases and steps learned block after block, so that each block's output comes near
the float network's. AdaRound (single layers), BRECQ (blocks), QDrop (blocks, quantization dropped at random).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from pytorch_quantizer.calibration.activation_cache import ActivationCache, Rows
from pytorch_quantizer.calibration.block_training import Examples, Schedule, train_block
from pytorch_quantizer.calibration.calibrate import device_of
from pytorch_quantizer.calibration.finished_blocks import FinishedBlocks
from pytorch_quantizer.calibration.frontier import Frontier
from pytorch_quantizer.calibration.learned_block import LearnedBlock, weight_quantizer_of
from pytorch_quantizer.calibration.memory import MemoryLimit, Need, largest_need, release_memory
from pytorch_quantizer.environment import free_memory
from pytorch_quantizer.graph.biases import accumulators, renew_biases
from pytorch_quantizer.graph.blocks import Block, list_blocks
from pytorch_quantizer.graph.operations import layer_nodes, module_of
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.qtypes import IntQuantizer
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.repeatable import repeatable_kernels

SEEDS = 2**20  # blocks that a seed has room for
ERRORS = ":errors"  # no tensor of a model has such a name


@dataclass(frozen=True)
class Reconstruction:
    """What was done to one block. error_before, error_after: its output's mean squared difference from the float
    network's, inputs quantized, on the calibration images. kept: whether it got what was learned: where that is less.
    """

    block: str
    error_before: float
    error_after: float
    kept: bool


def starting_scales(model: QuantizedModel) -> dict[str, Tensor]:
    """The scale of each weight that lies on a uniform grid, by its layer's path: before corrections multiply them."""
    return {path: layer.weight_quantizer.scale.clone() for path, layer in learnable_layers(model)[0].items()}


def reconstruct(
    model: QuantizedModel,
    graph: fx.GraphModule,
    images: Rows,
    cache: ActivationCache,
    scales: Mapping[str, Tensor],
    *,
    max_memory: int | None = None,
    finished: FinishedBlocks | None = None,
    progress: bool = True,
) -> list[Reconstruction]:
    """Learn what the model's recipe says, in place, block after block in the order of execution.

    graph: the float network it was made from, folded. images: of calibration; cache: where they and activations lie.
    scales: ``starting_scales``; a gain that corrections have put on them since stays. max_memory: bytes for a block's
    training and the cache together, unless given half of what is free. finished: blocks of a run that was stopped,
    which are not learned again, and where those that are go. Weights settle on one of their two neighbours; codes,
    scales, biases and steps that come out are the model's own. Repeatable under the recipe's seed on one machine.
    Raises InputError where max_memory is less than one block needs.
    """
    recipe, schedule = model.recipe, schedule_of(model.recipe)
    blocks = blocks_of(model)
    if not blocks:
        return []
    _keep_to(max_memory, cache, largest_need(model, blocks, schedule.batch))
    walk = _Walk(model, graph, images, cache, scales, schedule)
    release_memory(cycles=True)
    results = []
    with repeatable_kernels(), _frozen(model), _bar(blocks, schedule, progress) as bar:
        for index, block in enumerate(blocks):
            bar.set_description(f"block {index + 1} of {len(blocks)}: {block.name}")
            examples = walk.examples(block)
            state = None if finished is None else finished.read(index)
            if state is None:
                state = walk.learn(block, examples, (recipe.seed * SEEDS + index) % 2**64, bar)
                if finished is not None:
                    finished.write(index, state)
            else:
                walk.restore(state)
                bar.total -= schedule.iterations  # what takes no time says nothing of the time left
            before, after = state[ERRORS].tolist()
            results.append(Reconstruction(block.name, before, after, after < before))
            walk.advance(block)
            release_memory()
    return results


class _Walk:
    """Both networks computed up to the block that is learned."""

    def __init__(
        self,
        model: QuantizedModel,
        graph: fx.GraphModule,
        images: Rows,
        cache: ActivationCache,
        scales: Mapping[str, Tensor],
        schedule: Schedule,
    ) -> None:
        self.model, self.graph, self.schedule = model, graph, schedule
        self.simulated = Frontier(model, cache, images, schedule.batch)
        self.exact = Frontier(graph, cache, images, schedule.batch)
        self._scales = {path: scales[path] for path in learnable_layers(model)[0]}
        self._named = {node.name: node for node in graph.graph.nodes}

    def examples(self, block: Block) -> Examples:
        """What a block is trained on; the float network is computed up to its output for that."""
        before, mixes = self.exact.rows, self.schedule.drop > 0
        self.exact.advance(self._named[block.output.name])
        inputs = {node: self.simulated.rows[node] for node in block.inputs if node in self.simulated.rows}
        floats = {
            node: before[self._named[node.name]]
            for node in inputs
            if mixes and node.op != "placeholder" and self._named.get(node.name) in before
        }
        return Examples(inputs, floats, self.exact.rows[self._named[block.output.name]])

    def learn(self, block: Block, examples: Examples, seed: int, bar: Any) -> dict[str, Tensor]:
        """Learn a block, or leave it where its error does not fall; what it is then, and the two errors."""
        before, untouched = self.simulated.error(block.path, examples.target), self._state(block)
        rounds = self.model.recipe.reconstruction_learns != "activations"
        originals = _originals(self.model, self.graph, block, self._scales) if rounds else {}
        steps = self.model.recipe.reconstruction_learns != "weights"
        learned, after = LearnedBlock(self.model, block, originals, steps=steps), before
        if learned.learns:
            device = device_of(self.model)
            train_block(learned, examples, self.schedule, seed=seed, device=device, advance=bar.update)
            learned.harden()
            self._renew_biases()
            after = self.simulated.error(block.path, examples.target)
        else:
            bar.total -= self.schedule.iterations
        if not after < before:  # nor where it is no number
            self.restore(untouched)
        errors = torch.tensor([before, after], dtype=torch.float64)
        return {**self._state(block), ERRORS: errors}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Give layers and quantizers what ``learn`` returned."""
        entries = self.model.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, value in state.items():
                if name != ERRORS:
                    entries[name].copy_(value)
        self._renew_biases()

    def advance(self, block: Block) -> None:
        """Compute the quantized network up to the block's output, as it is now."""
        self.simulated.advance(block.output)

    def _state(self, block: Block) -> dict[str, Tensor]:
        """Copies of what a block's path is made of, by name."""
        prefixes = tuple(f"{node.target}." for node in block.path if module_of(self.model, node) is not None)
        return {name: t.clone() for name, t in self.model.state_dict().items() if name.startswith(prefixes)}

    def _renew_biases(self) -> None:
        renew_biases(self.model, accumulators(self.graph, self.model.sites, self.model.recipe))


def schedule_of(recipe: Recipe) -> Schedule:
    """How a recipe's blocks are trained."""
    return Schedule(recipe.reconstruction_iterations, recipe.reconstruction_batch, recipe.reconstruction_drop)


def blocks_of(model: QuantizedModel) -> list[Block]:
    """The blocks that the model's recipe has it learned in, in the order of execution."""
    recipe = model.recipe
    patterns = [name.strip() for name in recipe.reconstruction_blocks.split(",") if name.strip()]
    return list_blocks(model, single_layers=recipe.reconstruction == "layer", patterns=patterns)


def learnable_layers(model: QuantizedModel) -> tuple[dict[str, Any], dict[str, str]]:
    """(the layers whose rounding can be learned, by path; and for the others why not)."""
    calls = Counter(str(node.target) for node, _ in layer_nodes(model))
    found, left = dict[str, Any](), dict[str, str]()
    for node, layer in layer_nodes(model):
        path = str(node.target)
        reason = _obstacle(layer, calls[path])
        if reason is None:
            found[path] = layer
        else:
            left[path] = reason
    return found, left


def _obstacle(layer: nn.Module, calls: int) -> str | None:
    quantizer: Any = getattr(layer, "weight_quantizer", None)
    if quantizer is None:
        return "its weight is in float"
    if type(quantizer) is not IntQuantizer:
        return f"its weight is {quantizer.describe()}"
    if hasattr(layer, "weight_shift"):
        return "its weight is corrected off its grid"
    return None if calls == 1 else f"it is called {calls} times"


@torch.no_grad()
def _originals(
    model: QuantizedModel, graph: fx.GraphModule, block: Block, scales: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A block's float weights under the gains that corrections have put on their scales: what is to be rounded.

    scales: those of learnable layers before the corrections; what isn't there is left as it is.
    """
    found = {}
    for path in (str(node.target) for node in block.layers):
        if path in scales:
            weight, quantizer = graph.get_parameter(f"{path}.weight"), weight_quantizer_of(model.get_submodule(path))
            gain = quantizer.scale / scales[path]
            shape = [-1 if dim == quantizer.axis else 1 for dim in range(weight.dim())]
            found[path] = weight * (gain if quantizer.axis is None else gain.reshape(shape))
    return found


def _keep_to(max_memory: int | None, cache: ActivationCache, need: Need) -> None:
    """Leave the cache what a block's training doesn't need; unless told otherwise, of half the memory that is free."""
    if max_memory is None:
        cache.restrict(max((free_memory() + cache.used) / 2 - need.bytes, 0))
        return
    MemoryLimit(max_memory).require(need)
    cache.restrict(max_memory - need.bytes)


def _bar(blocks: list[Block], schedule: Schedule, progress: bool) -> Any:
    """Steps of all blocks, and the time that is left."""
    return tqdm(total=len(blocks) * schedule.iterations, disable=not progress, unit="step", leave=False)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for the parameters of layers that are not learned."""
    needed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in needed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in needed:
            parameter.requires_grad_(True)
