"""Shares of the ceilings, goals, all comparisons with the peers, and the tables that are printed."""

from collections import Counter
from typing import Any

from . import plan
from .plan import PASSES

Record = dict[str, Any]
Results = dict[str, Any]

# form, pass, least share of the matmul rate that the floor's operations must reach
_SHARES = (
    ("tiled", PASSES[0], 0.5),
    ("tiled", PASSES[2], 0.4),
    ("fused", PASSES[0], 0.3),
    ("fused", PASSES[2], 0.2),
)
_TIMES_ALL_PAIRS = 200.0
_TIMES_SDPA = ((PASSES[0], 1.3), (PASSES[1], 2.5))
_DTYPE = "bfloat16"


def measured(results: Results, **wanted: Any) -> list[Record]:
    """Speed records with status "measured" and these fields."""
    return [
        record
        for record in results["speed"]
        if record["status"] == "measured" and all(record.get(name) == value for name, value in wanted.items())
    ]


def add_shares(results: Results) -> None:
    """Add to every timed record its rates and its shares of the measured ceilings."""
    ceilings = {record["name"]: record.get("value") for record in results["ceilings"]}
    for record in results["speed"]:
        if "median_ms" not in record:
            continue
        # The time of the CUDA graph excludes launches.
        seconds = record["graph"].get("median_ms", record["median_ms"]) / 1e3
        rate = record["own_flop"] / seconds / 1e12
        matmul, copy = ceilings.get(f"matmul {record['dtype']}"), ceilings.get("copy")
        record["tflop_per_s"] = rate
        record["share_of_matmul"] = rate / matmul if matmul else None
        floor = record["floor_flop"] / seconds / 1e12
        record["floor_share_of_matmul"] = floor / matmul if matmul else None
        moved = record["least_bytes"] / seconds / 1e12
        record["share_of_copy"] = moved / copy if copy else None


def summarise(results: Results) -> dict[str, Any]:
    """Counts, goals and comparisons; `add_shares` must have been called."""
    counts = {
        section: dict(Counter(record["status"] for record in results[section]))
        for section in ("correctness", "ceilings", "speed", "kernels")
    }
    return {"counts": counts, "goals": _goals(results), "comparisons": _comparisons(results)}


def _goals(results: Results) -> list[dict[str, Any]]:
    def at_size(operation: str, size: dict[str, int], part: str) -> list[Record]:
        wanted = {"dtype": _DTYPE, "size_name": plan.size_name(size), "pass": part}
        return measured(results, operation=operation, **wanted)

    goals = []
    for form, part, wanted in _SHARES:
        shares = {one["form"]: one["floor_share_of_matmul"] for one in at_size("separable", plan.HEADLINE, part)}
        name = f"{form}, {part}: share of the matmul rate at the floor"
        goals.append(_goal(name, wanted, shares.get(form)))
    for part in (PASSES[0], PASSES[2]):
        ratio = _best_ratio(at_size("separable", plan.HEADLINE, part))
        name = f"separable, {part}: times the best all-pairs peer"
        goals.append(_goal(name, _TIMES_ALL_PAIRS, ratio))
    for batch in (8, 1):
        for part, wanted in _TIMES_SDPA:
            records = at_size("joint", plan.joint_size(plan.WIDTH, batch), part)
            times = {one["form"]: one["median_ms"] for one in records}
            ratio = None
            if {"sdpa efficient", "fused"} <= times.keys():
                ratio = times["sdpa efficient"] / times["fused"]
            name = f"joint, {part}, batch {batch}: times SDPA efficient"
            goals.append(_goal(name, wanted, ratio))
    return goals


def _goal(name: str, at_least: float, value: float | None) -> dict[str, Any]:
    met = None if value is None else value >= at_least
    return {"goal": name, "at_least": at_least, "measured": value, "met": met}


def _best_ratio(records: list[Record]) -> float | None:
    """Time of the fastest peer divided by that of the fastest own form."""
    own = [record["median_ms"] for record in records if record["own"]]
    peers = [record["median_ms"] for record in records if not record["own"]]
    return min(peers) / min(own) if own and peers else None


def _comparisons(results: Results) -> list[dict[str, Any]]:
    """Ratios of time and of peak memory between each own form and every other form at the same size.

    Times include launches, since peers have no CUDA graph.
    """
    rows = []
    for own in measured(results, own=True):
        same = {name: own[name] for name in ("operation", "size_name", "dtype", "pass")}
        for other in measured(results, **same):
            if other["form"] == own["form"] or (other["own"] and own["form"] > other["form"]):
                continue
            times = other["median_ms"] / own["median_ms"]
            memory = None
            if own["peak_mib"] and other["peak_mib"] is not None:
                memory = other["peak_mib"] / own["peak_mib"]
            rows.append(
                {
                    **same,
                    "form": own["form"],
                    "than": other["form"],
                    "times_faster": times,
                    "times_leaner": memory,
                    "verdict": "faster" if times > 1 else "slower",
                }
            )
    return rows


def format_tables(results: Results) -> str:
    """All figures as text; failures and goals come last."""
    lines = []
    for record in results["ceilings"]:
        value = f"{record['value']:.1f} {record['unit']}" if "value" in record else record["reason"]
        lines.append(f"  {record['name']}: {value}")
    lines.append(f"{'':74}{'median':>10}{'20 %':>9}{'80 %':>9}{'graph':>9}{'floor':>7}{'peak':>11}")
    for record in results["speed"]:
        name = f"{record['operation']} {record['dtype']} {short(record['size'])}"
        name += f" {record['form']} {record['pass']}"
        if "median_ms" not in record:
            lines.append(f"{name:74} {record['status']}: {record['reason']}")
            continue
        graph = record["graph"].get("median_ms")
        share = record.get("floor_share_of_matmul")
        lines.append(
            f"{name:74}{record['median_ms']:>7.3f} ms{record['low_ms']:>9.3f}{record['high_ms']:>9.3f}"
            f"{'' if graph is None else f'{graph:.3f}':>9}{'' if share is None else f'{share:.1%}':>7}"
            f"{'' if record['peak_mib'] is None else format(record['peak_mib'], '.0f') + ' MiB':>11}"
            f"{'' if record['status'] == 'measured' else '  ' + record['status'].upper()}"
        )
    for record in results["kernels"]:
        name = f"kernels of {record['operation']} {record['form']}"
        kernels = ", ".join(row["kernel"] for row in record.get("kernels", []))
        lines.append(f"{name}: {kernels or record['reason']}")
    lines += _format_comparisons(results)
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
        lines.append(f"goal {goal['goal']} >= {goal['at_least']:g}: {value}{met}")
    return "\n".join(lines)


def _format_comparisons(results: Results) -> list[str]:
    """A line for each size and pair of forms: how many times faster than the peer the own form is, by pass."""
    groups: dict[str, list[str]] = {}
    names = {record["size_name"]: short(record["size"]) for record in results["speed"]}
    for row in results["summary"]["comparisons"]:
        if row["than"] in plan.OWN[row["operation"]]:
            continue
        title = f"{row['operation']} {row['dtype']} {names[row['size_name']]}: {row['form']} / {row['than']}"
        mark = "" if row["verdict"] == "faster" else " (SLOWER)"
        groups.setdefault(title, []).append(f"{row['pass']} {row['times_faster']:.2f}x{mark}")
    return [f"{title}: {', '.join(parts)}" for title, parts in groups.items()]


def short(size: dict[str, int]) -> str:
    """A size in the paper's letters: P places, N words, B batch, d width, Tq queries, Tk keys, C channels."""
    letters = {"places": "P", "words": "N", "batch": "B", "queries": "Tq", "keys": "Tk"}
    letters |= {"channels": "C", "visual": "Cv", "language": "Cl"}
    return " ".join(f"{letters.get(name, 'd')} {value}" for name, value in size.items())
