"""What a run came to, as text."""

from .train_job import NO_WORD_ORDER, WORD_ORDER, Result

_NAMES = {
    "overall_iou": "overall IoU",
    "mean_iou": "mean IoU",
    **{f"precision@0.{tenth}": f"prec@0.{tenth}" for tenth in range(5, 10)},
}


def format_result(result: Result) -> str:
    """A table for people: every sentence, each kind, and the sentences shuffled among the pictures.

    For scenes it also says what word order costs, which CMSA does not see.
    """
    evaluation = result.evaluation
    rows: list[tuple[str, int, dict[str, float]]]
    rows = [("all sentences", evaluation.sentences, evaluation.overall)]
    rows += [
        (kind, evaluation.counts[kind], metrics) for kind, metrics in evaluation.by_kind.items()
    ]
    if result.shuffled is not None:
        shuffled = result.shuffled
        rows.append(("sentences shuffled", shuffled.sentences, shuffled.overall))
    width = max(len(name) for name, _, _ in rows)
    header = " " * width + f"  {'count':>6}" + "".join(f"  {name:>11}" for name in _NAMES.values())
    lines = [header]
    for name, count, metrics in rows:
        numbers = "".join(f"  {metrics[key]:>11.3f}" for key in _NAMES)
        lines.append(f"{name:<{width}}  {count:>6}{numbers}")
    minutes, seconds = divmod(round(result.progress.seconds), 60)
    lines += [
        "",
        "IoU at the pictures' own size. overall IoU: sum of intersections / sum of unions;",
        "mean IoU: mean over sentences; prec@X: share of sentences with IoU >= X.",
        f"{result.progress.step} steps in {minutes} min {seconds} s; everything is in {result.folder}",
    ]
    if WORD_ORDER in evaluation.by_kind and NO_WORD_ORDER in evaluation.by_kind:
        decides, free = (evaluation.by_kind[kind] for kind in (WORD_ORDER, NO_WORD_ORDER))
        lines.insert(
            -1,
            "What word order costs a model that sees a bag of words: overall IoU "
            f"{decides['overall_iou']:.3f} where the\nsame words in another order name another object, "
            f"{free['overall_iou']:.3f} at other relations.",
        )
    if result.overview is not None:
        lines.append(f"Look at {result.overview}")
    return "\n".join(lines)
