"""Shares of the ceilings, predicted times, goals, and the tables that are printed, with all comparisons."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from . import plan
from .plan import PASSES

Record = dict[str, Any]
Results = dict[str, Any]
Call = tuple[str, str, str, str]

COMPILE_REPORT = Path(__file__).resolve().parents[1] / "results" / "compile.json"
_DTYPE = "bfloat16"


def measured(results: Results, **wanted: Any) -> list[Record]:
    """Speed records with status "measured" and these fields."""
    return [
        record
        for record in results["speed"]
        if record["status"] == "measured" and all(record.get(name) == value for name, value in wanted.items())
    ]


def add_shares(results: Results) -> None:
    """Add to every timed record its rates, its shares of the measured ceilings and its predicted time."""
    ceilings = {record["name"]: record.get("value") for record in results["ceilings"]}
    predicted = _predictions(results["metadata"]["device"])
    for record in results["speed"]:
        if "median_ms" not in record:
            continue
        matmul, copy = ceilings.get(f"matmul {record['dtype']}"), ceilings.get("copy")
        record["tflop_per_s"] = _rate(record, "own_flop", 1.0)
        record["share_of_matmul"] = _rate(record, "own_flop", matmul)
        record["floor_share_of_matmul"] = _rate(record, "floor_flop", matmul)
        record["share_of_copy"] = _rate(record, "least_bytes", copy)
        call = (record["operation"], record["dtype"], record["pass"], record["size_name"])
        record["predicted_ms"] = predicted.get(call) if record["form"] == "triton" else None


def _rate(record: Record, work: str, ceiling: float | None) -> float | None:
    """Work (FLOP or bytes) per second as a share of a ceiling in tera; None if one of the two is unknown."""
    if record[work] is None or not ceiling:
        return None
    # The time of the CUDA graph excludes launches.
    milliseconds: float = record["graph"].get("median_ms", record["median_ms"])
    rate: float = record[work] / milliseconds / 1e9
    return rate / ceiling


def _predictions(device: dict[str, Any] | None) -> dict[Call, float]:
    """Milliseconds that the compile report predicts for calls on this GPU's architecture."""
    if not device or "capability" not in device:
        return {}
    major, minor = device["capability"]
    table = json.loads(COMPILE_REPORT.read_text(encoding="utf-8")).get("calls", {"rows": []})
    calls = (dict(zip(table["columns"], row, strict=True)) for row in table["rows"])
    return {
        _call(row): row["predicted_us"] / 1e3
        for row in calls
        if row["architecture"] == 10 * major + minor and row["variant"] == "plain"
    }


def _call(row: dict[str, Any]) -> Call:
    """Operation, dtype, pass and name of the size of a call of the compile report."""
    places, words, batch, width = (row[name] for name in ("places", "words", "batch", "width"))
    operation, size = {
        "separable": ("separable", plan.separable_size(places, words, batch, width)),
        "joint": ("joint", plan.joint_size(width, batch, places * words, places // 4 * words // 2)),
        "level_tail": ("projection", plan.projection_size(2048, batch, places, width)),
    }[row["family"]]
    return operation, row["arithmetic"], row["call"], plan.size_name(size)


def summarise(results: Results) -> dict[str, Any]:
    """Counts and goals; `add_shares` must have been called."""
    counts = {
        section: dict(Counter(record["status"] for record in results[section]))
        for section in ("correctness", "ceilings", "speed", "kernels")
    }
    return {"counts": counts, "goals": _goals(results)}


def exit_status(results: Results) -> int:
    """1 if an own form is incorrect or failed, else 3 if a case of correctness was not checked, else 0."""
    checked = [record["status"] for record in results["correctness"]]
    own = [record["status"] for record in results["speed"] if record["own"]]
    if "failed" in checked or "failed" in own or "inexact" in own:
        return 1
    return 3 if any(status != "passed" for status in checked) else 0


def _goals(results: Results) -> list[dict[str, Any]]:
    def times(operation: str, size: dict[str, int], part: str) -> dict[str, Record]:
        fields = {"operation": operation, "dtype": _DTYPE, "size_name": plan.size_name(size), "pass": part}
        return {one["form"]: one for one in measured(results, **fields)}

    forward, backward, both = PASSES
    goals = []
    for part, share in ((forward, 0.5), (both, 0.4)):
        forms = times("separable", plan.HEADLINE, part)
        value = forms["triton"]["floor_share_of_matmul"] if "triton" in forms else None
        goals.append(_goal(f"separable, {part}: share of the matmul rate at the floor", value, at_least=share))
        goals.append(_goal(f"separable, {part}: times the best all-pairs peer", _best_ratio(forms), at_least=200))
    graph = times("separable", plan.SMALL, forward).get("triton", {}).get("graph", {}).get("median_ms")
    goals.append(_goal("separable, forward, batch 1, 400 places: ms of the CUDA graph", graph, at_most=0.06))
    for batch in (8, 1):
        for part, ratio in ((forward, 1.3), (backward, 2.5)):
            forms = times("joint", plan.joint_size(plan.WIDTH, batch), part)
            value = None
            if {"sdpa efficient", "triton"} <= forms.keys():
                value = forms["sdpa efficient"]["median_ms"] / forms["triton"]["median_ms"]
            goals.append(_goal(f"joint, {part}, batch {batch}: times SDPA efficient", value, at_least=ratio))
    launches = {one["operation"]: one.get("launches", {}) for one in results["kernels"]}
    for operation, part, number in (("separable", forward, 10), ("separable", both, 30), ("level", forward, 25)):
        value = launches.get(operation, {}).get(part)
        goals.append(_goal(f"{operation}, {part}: launches", value, at_most=number))
    return goals


def _goal(
    name: str, value: float | None, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    met = None
    if value is not None:
        met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    return {"goal": name, "at_least": at_least, "at_most": at_most, "measured": value, "met": met}


def _best_ratio(forms: dict[str, Record]) -> float | None:
    """Time of the fastest peer divided by that of the fastest own form."""
    own = [record["median_ms"] for record in forms.values() if record["own"]]
    peers = [record["median_ms"] for record in forms.values() if not record["own"]]
    return min(peers) / min(own) if own and peers else None


def format_tables(results: Results) -> str:
    """All figures as text; failures and goals come last."""
    lines = []
    for record in results["ceilings"]:
        value = f"{record['value']:.1f} {record['unit']}" if "value" in record else record["reason"]
        lines.append(f"  {record['name']}: {value}")
    titles = ("median ms", "20 %", "80 %", "graph", "predicted", "floor", "direct", "peak MiB")
    lines.append(f"{'':74}{''.join(f'{title:>11}' for title in titles)}")
    for record in results["speed"]:
        name = f"{record['operation']} {record['dtype']} {short(record['size'])}"
        name += f" {record['form']} {record['pass']}"
        if "median_ms" not in record:
            lines.append(f"{name:74} {record['status']}: {record['reason']}")
            continue
        cells = (
            *(f"{record[key]:.3f}" for key in ("median_ms", "low_ms", "high_ms")),
            _cell(record["graph"].get("median_ms"), ".3f"),
            _cell(record["predicted_ms"], ".3f"),
            _cell(record["floor_share_of_matmul"], ".1%"),
            _cell(record.get("direct_share"), ".2%"),
            _cell(record["peak_mib"], ".0f"),
        )
        text = f"{name:74}{''.join(f'{cell:>11}' for cell in cells)}"
        lines.append(text if record["status"] == "measured" else f"{text}  {record['status'].upper()}")
    for record in results["kernels"]:
        launches = ", ".join(f"{part} {count}" for part, count in record.get("launches", {}).items())
        lines.append(f"launches of {record['operation']} {record['form']}: {launches or record['reason']}")
    lines += _comparisons(results)
    for section, counts in results["summary"]["counts"].items():
        text = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        lines.append(f"{section}: {text or 'not done'}")
    for record in results["correctness"]:
        if record["status"] != "passed":
            name = f"{record['operation']} {record['form']} {record['dtype']} [{record['case']}]"
            lines.append(f"{record['status'].upper()} {name}: {record['reason']}")
    for goal in results["summary"]["goals"]:
        met = {True: "met", False: "NOT MET", None: "not measured"}[goal["met"]]
        value = "" if goal["measured"] is None else f"{goal['measured']:.3g}, "
        bound = f"<= {goal['at_most']:g}" if goal["at_least"] is None else f">= {goal['at_least']:g}"
        lines.append(f"goal {goal['goal']} {bound}: {value}{met}")
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _comparisons(results: Results) -> list[str]:
    """A line for each size and pair of forms: how many times faster than the peer the own form is, by pass.

    Times include launches, since peers have no CUDA graph.
    """
    groups: dict[str, list[str]] = {}
    for own in measured(results, own=True):
        same = {name: own[name] for name in ("operation", "size_name", "dtype", "pass")}
        for peer in measured(results, own=False, **same):
            times = peer["median_ms"] / own["median_ms"]
            title = f"{own['operation']} {own['dtype']} {short(own['size'])}: {own['form']} / {peer['form']}"
            mark = "" if times > 1 else " (SLOWER)"
            groups.setdefault(title, []).append(f"{own['pass']} {times:.2f}x{mark}")
    return [f"{title}: {', '.join(parts)}" for title, parts in groups.items()]


def short(size: dict[str, int]) -> str:
    """A size in the paper's letters: P places, N words, B batch, d width, Tq queries, Tk keys, C channels."""
    letters = {"places": "P", "words": "N", "batch": "B", "width": "d", "queries": "Tq", "keys": "Tk"}
    letters |= {"channels": "C", "visual": "Cv", "language": "Cl"}
    return " ".join(f"{letters.get(name, name)} {value}" for name, value in size.items())
