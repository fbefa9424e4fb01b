"""QuantizedModel: a torch.fx.GraphModule that simulates quantization and knows its sites.
How it came about is the business of the stages before; what it is worth, of evaluation/.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from torch import Tensor, fx, nn

from pytorch_quantizer.graph.fuse import copy_of, fused
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.recipe import Recipe


class QuantizedModel(fx.GraphModule):
    """A network whose weights and biases lie on their grids and whose activations are put on theirs at each forward.

    ``forward`` runs a fused copy of ``graph``: a quantizer does the ReLU and the addition before it, and overwrites
    what nobody else reads. To look at tensors inside, ``torch.fx.Interpreter(model).run(x)`` runs ``graph`` as it
    stands; a hook on one of its modules counts from the next ``recompile`` on.

    sites: every tensor that is or could be quantized. recipe: what was carried out: what was asked for, with mixed
    precision's choice written out as overrides, so that it gives the same model again.
    """

    def __init__(
        self,
        root: nn.Module | dict[str, Any],
        graph: fx.Graph,
        class_name: str = "QuantizedModel",
        *,
        sites: tuple[Site, ...] | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        super().__init__(root, graph, class_name)
        if sites is not None:
            self.meta.update(sites=sites, recipe=recipe)  # meta is what GraphModule copies along

    def recompile(self) -> Any:
        """Write ``forward`` anew: it runs the fused graph (graph/fuse.py), ``graph`` itself stays as it is.

        Needed after a change of the graph, after hooks were registered, and after a quantizer was replaced by a module
        of another kind.
        """
        apart = self._graph
        try:
            self._graph = fused(self)
            return super().recompile()
        finally:
            self._graph = apart

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the graph itself: GraphModule would trace its code anew, and come back without sites."""
        attributes = {name: value for name, value in vars(self).items() if name not in ("_graph", "_code")}
        return _restored, (attributes, copy_of(self.graph))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every tensor that is or could be quantized, weights first, then in the order of execution, then biases."""
        return self.meta["sites"]

    @property
    def recipe(self) -> Recipe:
        """What was carried out."""
        return self.meta["recipe"]

    @property
    def calibration_images(self) -> int | None:
        """How many images its ranges, and what was learned, come from; None where a statistics file doesn't tell."""
        return self.meta.get("calibration_images")

    @property
    def statistics_read(self) -> bool:
        """Whether its ranges come from a statistics file that was there before."""
        return bool(self.meta.get("statistics_read"))

    @property
    def network(self) -> str | None:
        """The digest of the float network that it was made from (graph/digest.py), None where that isn't known."""
        return self.meta.get("network")

    @property
    def batch_extremes(self) -> dict[str, Tensor]:
        """Min and max of activations in each calibration batch, [batches, 2] by site name; empty where unknown."""
        return self.meta.get("batch_extremes", {})

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done beside putting tensors on grids, a sentence each: equalization, corrections."""
        return self.meta.get("notes", ())

    def table(self) -> pd.DataFrame:
        """A row a site: name, kind, type, bits, low, high, granularity, carrier, read_by, reason.

        type is the quantizer's (uint4), "carried" where another tensor's grid serves, "float32" where left in float.
        """
        return pd.DataFrame([_row(site) for site in self.sites])

    def summary(self) -> str:
        """For people: quantized tensors with types and ranges, what stays in float and why, and what else was done."""
        table = self.table()
        left, carried = table[table["type"] == "float32"], table[table["type"] == "carried"]
        quantized = table.drop(index=left.index).drop(index=carried.index)
        shown = quantized.assign(
            range=[f"[{low:.4g}, {high:.4g}]" for low, high in zip(quantized.low, quantized.high, strict=True)]
        )
        remarks = [*self.notes, *(f"{site.name}: {site.remark}" for site in self.sites if site.remark)]
        deployable = "deployable" if self.recipe.deployable else "not deployable"
        return "\n".join(
            [
                f"recipe {self.recipe.name!r} ({deployable}): {len(quantized)} tensors quantized",
                _text(shown[["name", "kind", "type", "granularity", "range"]]),
                f"\n{len(carried)} tensors that an integer kernel never stores, on another's grid",
                _text(carried[["name", "carrier"]]),
                f"\n{len(left)} tensors left in float",
                _text(left[["name", "kind", "reason"]]),
                *(["\nNotes", *remarks] if remarks else []),
            ]
        )


def _restored(attributes: dict[str, Any], graph: fx.Graph) -> QuantizedModel:
    """What was pickled."""
    root = nn.Module()
    vars(root).update(attributes)
    model = QuantizedModel(root, graph)
    model.meta.update(attributes["meta"])
    return model.train(attributes["training"])


def _text(table: pd.DataFrame) -> str:
    """A table with its text columns set flush left."""
    widths = {column: table[column].astype(str).str.len().max() for column in table}
    formatters: Any = {column: (lambda value, width=width: f"{value:<{width}}") for column, width in widths.items()}
    return table.to_string(index=False, justify="left", formatters=formatters) if len(table) else "(none)"


def _row(site: Site) -> dict[str, Any]:
    row: dict[str, Any] = {"name": site.name, "kind": site.kind, "type": "float32" if site.is_float else "carried"}
    row |= {"bits": 32 if site.is_float else None, "low": None, "high": None, "granularity": ""}
    row |= {"carrier": site.carrier or "", "read_by": ", ".join(site.consumers), "reason": site.reason or ""}
    if site.quantizer is None:
        return row
    if not site.quantizer.needs_statistics and site.quantizer.scale is None:  # an online one, before the first batch
        return row | {"type": site.quantizer.describe(), "bits": site.quantizer.bits, "granularity": "online"}
    low, high = site.quantizer.range()
    granularity = "per-tensor" if low.dim() == 0 else f"per-channel[{low.numel()}]"
    row |= {"type": site.quantizer.describe(), "bits": site.quantizer.bits, "granularity": granularity}
    return row | {"low": float(low.min()), "high": float(high.max())}
