"""Plots of a result file: time and memory over places, words and width, and a roofline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import plan, summary
from .plan import PASSES
from .summary import Record, Results

# A form has the same colour and marker in every plot.
_STYLES = {
    "triton": ("tab:red", "o"),
    "torch": ("tab:blue", "s"),
    "sdpa efficient": ("tab:green", "^"),
    "naive": ("tab:gray", "X"),
    "naive compiled": ("black", "o"),
    "chunked": ("tab:purple", "s"),
    "flex": ("tab:cyan", "D"),
}
_OTHER = ("tab:brown", "^")
_QUANTITIES = {"median_ms": ("time", "ms"), "peak_mib": ("peak memory", "MiB")}

Panel = Callable[[Axes], None]


def draw_all(results: Results, folder: Path) -> dict[str, str | None]:
    """Write the plots to a folder; returns for each file name None, or why it was not drawn."""
    panels = {
        "time.png": _over_sizes(results, "median_ms"),
        "memory.png": _over_sizes(results, "peak_mib"),
        "joint.png": [
            *_over(results, "joint", "width", "median_ms", PASSES[:2]),
            *_over(results, "joint", "width", "peak_mib", PASSES[:2]),
        ],
        "roofline.png": [*_roofline(results, "separable"), *_roofline(results, "joint")],
    }
    for name, drawn in panels.items():
        if drawn:
            _save(drawn, _note(results), folder / name)
    return {name: None if drawn else "no figures for it" for name, drawn in panels.items()}


def _save(panels: list[Panel], note: str, path: Path) -> None:
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.8 * rows), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(rows, columns, squeeze=False).flat, strict=False):
        axes.set(xscale="log", yscale="log")
        panel(axes)
        axes.grid(color="0.9")
        axes.legend(fontsize="small")
    figure.supxlabel(note, fontsize="small", color="gray")
    figure.savefig(path)


def _note(results: Results) -> str:
    metadata = results["metadata"]
    device = metadata["device"] or {}
    commit = (metadata["commit"] or "unknown commit")[:10]
    parts = (device.get("name", "unknown device"), f"torch {device.get('torch')}")
    return ", ".join([*parts, metadata["date"][:10], commit])


def _reference(results: Results, operation: str) -> Record | None:
    """The record whose size and dtype the other records of a plot must have: the headline's, or the first one."""
    records = summary.measured(results, operation=operation)
    headline = plan.size_name(plan.HEADLINE)
    return next((one for one in records if one["size_name"] == headline), next(iter(records), None))


def _over_sizes(results: Results, figure: str) -> list[Panel]:
    passes = (PASSES[0], PASSES[2])
    return [panel for axis in ("places", "words") for panel in _over(results, "separable", axis, figure, passes)]


def _over(results: Results, operation: str, axis: str, figure: str, passes: tuple[str, ...]) -> list[Panel]:
    """A panel for each pass: a figure of every form over one axis of the size."""
    reference = _reference(results, operation)
    if reference is None:
        return []
    dtype = reference["dtype"]
    fixed = {name: value for name, value in reference["size"].items() if name != axis}
    quantity, unit = _QUANTITIES[figure]

    def panel(part: str, records: list[Record]) -> Panel:
        def draw(axes: Axes) -> None:
            for form in dict.fromkeys(record["form"] for record in records):
                _draw_form(axes, form, [one for one in records if one["form"] == form], axis, figure)
            ticks = sorted({record["size"][axis] for record in records})
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.set_xticks([], minor=True)
            title = f"{operation}, {part}: {quantity} at {summary.short(fixed)}, {dtype}"
            axes.set(title=title, xlabel=axis, ylabel=unit)

        return draw

    panels = []
    for part in passes:
        records = [
            record
            for record in summary.measured(results, operation=operation, dtype=dtype, **{"pass": part})
            if {**record["size"], axis: None} == {**fixed, axis: None} and (record[figure] or 0) > 0
        ]
        if records:
            panels.append(panel(part, sorted(records, key=lambda one: one["size"][axis])))
    return panels


def _draw_form(axes: Axes, form: str, records: list[Record], axis: str, figure: str) -> None:
    colour, marker = _STYLES.get(form, _OTHER)
    style: dict[str, Any] = {"color": colour, "marker": marker}
    sizes = [record["size"][axis] for record in records]
    values = [record[figure] for record in records]
    if figure != "median_ms":
        axes.plot(sizes, values, label=form, **style)
        return
    below = [record["median_ms"] - record["low_ms"] for record in records]
    above = [record["high_ms"] - record["median_ms"] for record in records]
    axes.errorbar(sizes, values, yerr=[below, above], label=form, **style)
    replays = [record for record in records if "median_ms" in record["graph"]]
    if replays:
        axes.plot(
            [record["size"][axis] for record in replays],
            [record["graph"]["median_ms"] for record in replays],
            label=f"{form}, CUDA graph",
            linestyle="dashed",
            alpha=0.5,
            **style,
        )


def _roofline(results: Results, operation: str) -> list[Panel]:
    """Rate over arithmetic intensity, from the algorithm's own operations and the least number of bytes."""
    reference = _reference(results, operation)
    if reference is None:
        return []
    dtype = reference["dtype"]
    records = summary.measured(results, operation=operation, dtype=dtype)
    ceilings: dict[str, Any] = {one["name"]: one.get("value") for one in results["ceilings"]}
    matmul, copy = ceilings.get(f"matmul {dtype}"), ceilings.get("copy")

    def draw(axes: Axes) -> None:
        intensities = [one["own_flop"] / one["least_bytes"] for one in records]
        for form in dict.fromkeys(record["form"] for record in records):
            colour, marker = _STYLES.get(form, _OTHER)
            points = [
                (intensity, one["tflop_per_s"])
                for intensity, one in zip(intensities, records, strict=True)
                if one["form"] == form
            ]
            axes.scatter(*zip(*points, strict=True), label=form, color=colour, marker=marker)
        if matmul and copy:
            ridge = matmul / copy
            low, high = min(*intensities, ridge / 2), max(*intensities, ridge * 2)
            axes.plot([low, ridge], [low * copy, matmul], color="0.6", label=f"copy, {copy:.2f} TB/s")
            label = f"matmul, {matmul:.3g} TFLOP/s"
            axes.plot([ridge, high], [matmul, matmul], color="0.3", label=label)
        title = f"{operation}, all sizes and passes, {dtype}"
        axes.set(title=title, xlabel="FLOP per byte", ylabel="TFLOP/s")

    return [draw]
