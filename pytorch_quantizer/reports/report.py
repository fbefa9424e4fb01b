"""The report: which sections a page has of what was read, in which order, and what stands on top of it.
The sections themselves are their own files', the HTML around them page.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.reports.ablation import ablation_section
from pytorch_quantizer.reports.agreement import agreement_section
from pytorch_quantizer.reports.chosen_runs import MOST_RUNS, chosen_runs
from pytorch_quantizer.reports.confusion import confusion_section
from pytorch_quantizer.reports.costs import bench_section, costs_section
from pytorch_quantizer.reports.distributions import distributions_section
from pytorch_quantizer.reports.layers import sensitivity_section, tensors_section
from pytorch_quantizer.reports.methods import methods_section
from pytorch_quantizer.reports.page import page
from pytorch_quantizer.reports.pages import run_title
from pytorch_quantizer.reports.provenance import origin_section, recipe_section
from pytorch_quantizer.reports.runs_table import runs_table
from pytorch_quantizer.reports.section import Markup, Section, paragraph
from pytorch_quantizer.reports.sources import Material, Run, Table
from pytorch_quantizer.reports.sweep_origin import sweep_origin_section
from pytorch_quantizer.reports.table import percent, points
from pytorch_quantizer.reports.tradeoff import tradeoff_section
from pytorch_quantizer.reports.training import training_section

Entry = TypeVar("Entry")


def report(material: Material, title: str | None = None, detail: Sequence[str] = ()) -> str:
    """The HTML of a report. detail: names of the runs that are shown in full; none: those of ``chosen_runs``.

    Raises InputError where there is nothing to show, or nothing of such a name.
    """
    sections = list(sections_of(material, detail))
    if not sections:
        raise InputError("nothing to report: what was given holds no run, sweep or table")
    alone = material.runs[0] if len(material.runs) == 1 and not material.sweeps and not material.leaderboards else None
    opening = None if alone is None else _figures(alone.record)
    return page(title or title_of(material), sections, opening=opening)


def write_report_page(path: Path, material: Material, title: str | None = None, detail: Sequence[str] = ()) -> int:
    """Write ``report``, whole or not at all; its size in bytes. Raises InputError as it does."""
    data = report(material, title, detail).encode()
    write_atomically(path, data)
    return len(data)


def title_of(material: Material) -> str:
    """What a page is called unless the user says."""
    if len(material.runs) == 1 and not material.sweeps and not material.leaderboards:
        return run_title(material.runs[0].record)
    kinds = {"Sweep": material.sweeps, "Leaderboard": material.leaderboards, "Sensitivity": material.diagnoses}
    records = {"Comparison": material.comparisons, "Ablation": material.ablations}
    records |= {"Latency and size": material.benches, "Training": material.trainings}
    named = [f"{kind} {table.name}" for kind, tables in kinds.items() for table in tables]
    named += [f"{kind} {record.name}" for kind, entries in records.items() for record in entries]
    return ", ".join(named) if named else f"{len(material.runs)} runs"


def sections_of(material: Material, detail: Sequence[str] = ()) -> Iterator[Section]:
    """All sections, from the many to the single. detail: as ``report`` has it."""
    chosen = chosen_runs(material.runs, detail)
    for name, table in _numbered("sweep", material.sweeps):
        yield tradeoff_section(table.rows, name, f"Sweep {table.name}: accuracy against size and bits")
        yield sweep_origin_section(table.rows, table.record, name, f"Recipes, versions and machine of {table.name}")
    if len(material.runs) > 1:
        yield _runs_section(material.runs, chosen)
    for name, table in _numbered("leaderboard", material.leaderboards):
        yield methods_section(table.rows, name, f"Methods: {table.name}")
    beside = material.diagnoses[0] if len(material.runs) == len(material.diagnoses) == 1 else None
    for name, run in _numbered("run", chosen):
        yield from run_sections(run, name, f"{run.name}: " if len(material.runs) > 1 else "", beside)
    for name, table in _numbered("diagnosis", material.diagnoses) if beside is None else ():
        yield sensitivity_section(table.rows, table.record, name, f"Sensitivity of layers ({table.name})")
        yield recipe_section(table.record["recipe"], name, f"Recipe ({table.name})")
        yield origin_section(table.record, name, f"Versions and machine ({table.name})")
    for name, record in _numbered("comparison", material.comparisons):
        yield agreement_section(record.record, name, f"Simulation, integers and runtime ({record.name})")
        yield origin_section(record.record, name, f"Versions and machine ({record.name})")
    for name, record in _numbered("ablation", material.ablations):
        yield ablation_section(record.record, name, f"Which ingredient did what ({record.name})")
        yield origin_section(record.record, name, f"Versions and machine ({record.name})")
    for name, record in _numbered("bench", material.benches):
        yield bench_section(record.record, name, f"Latency and size ({record.name})")
        yield origin_section(record.record, name, f"Versions and machine ({record.name})")
    for name, record in _numbered("training", material.trainings):
        yield training_section(record.record, name, f"Training of {record.name}")


def _numbered(name: str, entries: Sequence[Entry]) -> Iterator[tuple[str, Entry]]:
    """Each with a name of its own, numbered where there are several."""
    for i, entry in enumerate(entries, 1):
        yield name if len(entries) == 1 else f"{name}{i}", entry


def _runs_section(runs: Sequence[Run], chosen: Sequence[Run]) -> Section:
    made = tradeoff_section(runs_table(runs), "runs", "Runs: accuracy against size and bits")
    if len(chosen) == len(runs):
        return made
    note = paragraph(
        f"Tensors and classes are shown of {', '.join(run.name for run in chosen)}, and of others where `pq report` is "
        f"told so by --detail NAME. Unless it is, of more than {MOST_RUNS} runs the page shows those of the Pareto "
        f"front, at most the {MOST_RUNS} most accurate."
    )
    return replace(made, parts=[*made.parts, note])


def run_sections(run: Run, prefix: str, named: str = "", diagnosis: Table | None = None) -> Iterator[Section]:
    """What one run has to show. named: what its titles begin with. diagnosis: of the same layers, linked with them."""
    record = run.record
    yield tensors_section(run.layers, prefix, f"{named}Noise of each tensor", record.get("layers", {}).get("samples"))
    if diagnosis is not None:
        yield sensitivity_section(diagnosis.rows, diagnosis.record, prefix, "Sensitivity of layers")
    if run.details is not None and run.details["tensors"]:
        worst = worst_tensor(run.layers)
        yield distributions_section(run.details, prefix, f"{named}Values, ranges and grids", worst)
    if run.details is not None and run.details["answers"]["fp32"] is not None:
        yield confusion_section(run.details["answers"], prefix, f"{named}Classes that suffer")
    yield costs_section(record, prefix, f"{named}Latency and size")
    yield recipe_section(record["recipe"], prefix, f"{named}Recipe")
    yield origin_section(record, prefix, f"{named}Versions and machine")


def worst_tensor(layers: pd.DataFrame) -> str | None:
    """The activation that loses most by itself."""
    rows = layers[layers["sqnr_db"].notna() & (layers["kind"] == "activation")]
    return None if rows.empty else str(rows.sort_values("sqnr_db", kind="stable")["name"].iloc[0])


def _figures(record: dict[str, Any]) -> Markup:
    """The run in five figures."""
    fp32, quantized = record["fp32"], record["quantized"]
    change = f"{points(quantized['top1'] - fp32['top1'])} points to float32's {percent(fp32['top1'])}"
    low, high = quantized["top1_interval"]
    size = quantized["size_bytes"] / fp32["size_bytes"]
    types = record.get("types", record["recipe"])
    figures = {
        "top-1": (percent(quantized["top1"]), change),
        "95 % interval": (f"{100 * low:.2f} – {100 * high:.2f}", f"%, of {record['samples']} images"),
        "same prediction": (percent(quantized["agreement"]), "as the float network"),
        "size": (f"{size:.2f} x", f"{quantized['size_bytes']:,} bytes on disk"),
        "bits": (
            f"{types.get('weights')} / {types.get('activations')}",
            f"weights / activations; {'deployable' if record.get('deployable') else 'not deployable'}",
        ),
    }
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, (value, note) in figures.items()
    )
    return Markup(f'<dl class="numbers">{cells}</dl>')
