"""The plots of a result file: time and memory over places, words and width, and a roofline."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import charts, plan, summary
from .charts import Chart, Series
from .plan import PASSES
from .summary import Record, Results

_COLOURS = {
    "fused": (214, 39, 40),
    "torch": (31, 119, 180),
    "tiled": (255, 127, 14),
    "sdpa efficient": (44, 140, 60),
    "naive": (120, 120, 120),
    "naive compiled": (60, 60, 60),
    "chunked": (148, 103, 189),
    "flex": (23, 170, 190),
}
_OTHER = (140, 86, 75)
_ORDER = tuple(_COLOURS)  # a form has the same marker in every plot
_TITLES = {"separable": "separable", "joint": "joint"}


def draw_all(results: Results, folder: Path) -> dict[str, str | None]:
    """Write the plots; each name with None, or why it was not drawn."""
    drawn: dict[str, str | None] = {}
    made: dict[str, Callable[[Results], list[Chart]]] = {
        "time.png": lambda found: _over_sizes(found, "median_ms"),
        "memory.png": lambda found: _over_sizes(found, "peak_mib"),
        "joint.png": _over_width,
        "roofline.png": _roofline,
    }
    for name, make in made.items():
        panels = [chart for chart in make(results) if any(one.points for one in chart.series)]
        if panels:
            charts.draw(panels, min(2, len(panels)), _note(results)).save(folder / name)
        drawn[name] = None if panels else "nothing was measured that it shows"
    return drawn


def _note(results: Results) -> str:
    metadata = results["metadata"]
    device = metadata["device"] or {}
    commit = (metadata["commit"] or "unknown commit")[:10]
    parts = (device.get("name", "unknown device"), f"torch {device.get('torch')}")
    return ", ".join([*parts, metadata["date"][:10], commit])


def _reference(results: Results, operation: str) -> Record | None:
    """The measured record whose size and dtype the others of a plot share: the headline's, or the first."""
    found = summary.measured(results, operation=operation)
    headline = plan.size_name(plan.HEADLINE)
    return next((one for one in found if one["size_name"] == headline), found[0] if found else None)


def _over_sizes(results: Results, figure: str) -> list[Chart]:
    reference = _reference(results, "separable")
    if reference is None:
        return []
    panels = []
    for axis in ("places", "words"):
        fixed = {name: value for name, value in reference["size"].items() if name != axis}
        for part in (PASSES[0], PASSES[2]):
            found = [
                record
                for record in summary.measured(
                    results, operation="separable", dtype=reference["dtype"], **{"pass": part}
                )
                if all(record["size"][name] == value for name, value in fixed.items())
                and record[figure] is not None
            ]
            quantity = "time" if figure == "median_ms" else "peak memory"
            panels.append(
                Chart(
                    f"{_TITLES['separable']}, {part}: {quantity} at {summary.short(fixed)}, {reference['dtype']}",
                    axis,
                    "ms" if figure == "median_ms" else "MiB",
                    _by_form(found, axis, figure),
                    sorted({record["size"][axis] for record in found}),
                )
            )
    return panels


def _over_width(results: Results) -> list[Chart]:
    reference = _reference(results, "joint")
    if reference is None:
        return []
    fixed = {name: value for name, value in reference["size"].items() if name != "width"}
    panels = []
    for figure, label in (("median_ms", "ms"), ("peak_mib", "MiB")):
        for part in PASSES[:2]:
            found = [
                record
                for record in summary.measured(
                    results, operation="joint", dtype=reference["dtype"], **{"pass": part}
                )
                if all(record["size"][name] == value for name, value in fixed.items())
                and record[figure] is not None
            ]
            quantity = "time" if figure == "median_ms" else "peak memory"
            panels.append(
                Chart(
                    f"{_TITLES['joint']}, {part}: {quantity} at {summary.short(fixed)}, {reference['dtype']}",
                    "width",
                    label,
                    _by_form(found, "width", figure),
                    sorted({record["size"]["width"] for record in found}),
                )
            )
    return panels


def _by_form(records: Sequence[Record], axis: str, figure: str) -> list[Series]:
    series: list[Series] = []
    for form in dict.fromkeys(record["form"] for record in records):
        points: list[tuple[float, ...]] = []
        for record in sorted(records, key=lambda one: one["size"][axis]):
            if record["form"] != form or record[figure] <= 0:
                continue
            point: tuple[float, ...] = (record["size"][axis], record[figure])
            if figure == "median_ms":
                point += (record["low_ms"], record["high_ms"])
            points.append(point)
        number = _ORDER.index(form) if form in _ORDER else len(_ORDER)
        if points:
            series.append(Series(form, points, _COLOURS.get(form, _OTHER), number))
        replays: list[tuple[float, ...]] = [
            (record["size"][axis], record["graph"]["median_ms"])
            for record in records
            if record["form"] == form and figure == "median_ms" and "median_ms" in record["graph"]
        ]
        if replays:
            red, green, blue = ((channel + 255) // 2 for channel in _COLOURS.get(form, _OTHER))
            label = f"{form}, replayed as a CUDA graph"
            series.append(Series(label, replays, (red, green, blue), number))
    return series


def _roofline(results: Results) -> list[Chart]:
    """Rate over arithmetic intensity, by the algorithm's own work and the fewest bytes."""
    ceilings: dict[str, Any] = {one["name"]: one.get("value") for one in results["ceilings"]}
    panels = []
    for operation in ("separable", "joint"):
        reference = _reference(results, operation)
        if reference is None:
            continue
        dtype = reference["dtype"]
        found = summary.measured(results, operation=operation, dtype=dtype)
        series = [
            Series(
                form,
                [
                    (one["own_flop"] / one["least_bytes"], one["tflop_per_s"])
                    for one in found
                    if one["form"] == form
                ],
                _COLOURS.get(form, _OTHER),
                _ORDER.index(form) if form in _ORDER else len(_ORDER),
                line=False,
            )
            for form in dict.fromkeys(one["form"] for one in found)
        ]
        matmul, copy = ceilings.get(f"matmul {dtype}"), ceilings.get("copy")
        bounds = []
        if matmul and copy:
            ridge = matmul / copy
            bounds = [
                Series(
                    f"copy, {copy:.2f} TB/s",
                    [(ridge / 1e6, matmul / 1e6), (ridge, matmul)],
                    (150, 150, 150),
                ),
                Series(
                    f"matmul, {matmul:.3g} TFLOP/s",
                    [(ridge, matmul), (ridge * 1e9, matmul)],
                    (90, 90, 90),
                ),
            ]
        panels.append(
            Chart(
                f"{_TITLES[operation]}, all sizes and passes, {dtype}",
                "FLOP per byte",
                "TFLOP/s",
                series,
                bounds=bounds,
            )
        )
    return panels
