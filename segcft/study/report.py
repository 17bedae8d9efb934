"""From the rows of every seed to one table, one figure and one page, docs/results/EXPERIMENT.md."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from segcft.core.atomic_files import write_text
from segcft.core.provenance import hardware
from segcft.evaluation import result_tables
from segcft.evaluation.bootstrap import Estimate
from segcft.evaluation.protocol import Method
from segcft.evaluation.summary import Estimates, health, summarise
from segcft.study.plan import Study

TITLES = {"seg_cft": "Seg-CFT", "pos_seg_cft": "Pos-Seg-CFT", "reg_cft": "Reg-CFT", "ours": "Seg-CFT"}
FIGURE = {
    "mape": "MAPE %",
    "mae_sd": "MAE, % of SD",
    "leakage": "leakage %",
    "spill": "spill",
    "in_region": "change in region",
    "truth_ratio": "error to truth / unchanged",
    "mask_ratio": "mask error / unchanged",
    "old_edge": "old edge left",
}


def conclude(plan: Study, command: str, wall: float, docs: Path) -> dict[str, Any]:
    """Pool the seeds and write benchmark.json, table.md and figure.png, and the experiment's page.

    Seeds and subjects are resampled crosswise, for every seed is asked about the same subjects.

    Args:
        plan: What was compared; its evaluations lie in ``plan.out``.
        command: That reproduces it.
        wall: Seconds that all of it took, of earlier interrupted runs, too.
        docs: Folder of results/ and figures/.
    """
    found = [json.loads((plan.out / f"seed{seed}" / "metrics.json").read_text()) for seed in plan.seeds]
    frame = pd.concat([pd.read_csv(plan.out / f"seed{s}" / "subjects.csv").assign(seed=s) for s in plan.seeds])
    summary = summarise(frame.reset_index(drop=True), ("seed", "subject") if len(plan.seeds) > 1 else ("subject",))
    metrics: Estimates = summary["metrics"]
    _add_realism(metrics, found)
    floor = {do: sum(one["evaluator_floor"][do] for one in found) / len(found) for do in found[0]["evaluator_floor"]}
    refinement = {
        name: Method("", method["corrections"], method["confined"]).refinement for name, method in plan.methods.items()
    }
    warnings = health(metrics, floor, found[0]["health"]["threshold"])["warnings"]
    results = {
        "experiment": plan.name,
        "seeds": plan.seeds,
        "split": plan.split,
        "subjects": found[0]["subjects"],
        "ask": plan.ask,
        "methods": plan.methods,
        "evaluator_floor": floor,
        **summary,
        "warnings": warnings,
        "command": command,
        "hardware": hardware(),
        "seconds": round(wall, 1),
        "by_seed": {str(seed): one["metrics"] for seed, one in zip(plan.seeds, found, strict=True)},
    }
    text = result_tables.markdown(metrics, refinement, floor, warnings, summary["differences"])
    result_tables.write_json(plan.out / "benchmark.json", results)
    write_text(plan.out / "table.md", text)
    picture = forest(metrics)
    result_tables.write_figure(plan.out / "figure.png", picture)
    figure = docs / "figures" / f"benchmark_{plan.name}.png"
    figure.parent.mkdir(parents=True, exist_ok=True)
    result_tables.write_figure(figure, picture, dpi=60)
    path = docs / "results" / f"{plan.name}.md"
    path.parent.mkdir(exist_ok=True)
    write_text(path, page(results, text, f"../figures/{figure.name}"))
    return results


def _add_realism(metrics: Estimates, found: list[dict[str, Any]]) -> None:
    """Distances between sets: the mean over seeds, and between which values the seeds lie."""
    for method, by_do in metrics.items():
        for do, values in by_do.items():
            for name in result_tables.REALISM:
                every = [one["metrics"][method][do].get(name, {}).get("value") for one in found]
                if all(value is not None for value in every):
                    values[name] = Estimate(sum(every) / len(every), min(every), max(every))


def page(results: Mapping[str, Any], text: str, figure: str) -> str:
    """Markdown of one experiment."""
    machine, seeds = results["hardware"], results["seeds"]
    if len(seeds) > 1:
        few = " (with so few seeds they are a lower bound on the uncertainty)" if len(seeds) < 5 else ""
        trained = f"seeds {', '.join(map(str, seeds))}"
        resampled = (
            f"seeds and subjects, resampled crosswise{few}; for Fréchet and kernel distances, the range over seeds"
        )
    else:
        trained = f"seed {seeds[0]} alone"
        resampled = "subjects, and do not contain the variation between trainings"
    asked = f"Each is asked for `{results['ask']}` of every variable. " if results["ask"] else ""
    return (
        f"# {results['experiment']}\n\n{headline(results)}\n\n"
        f"![Metrics of every method with intervals]({figure})\n\n"
        f"{results['subjects']} subjects of split `{results['split']}`, training {trained}; all methods have the same "
        f"subjects, targets and data. {asked}Brackets are 95 % bootstrap intervals over {resampled}. "
        "`refinement` is what the segmentor still does at inference: rounds of correction, and confinement.\n\n"
        f"```sh\n{results['command']}\n```\n\n"
        f"{results['seconds'] / 60:.0f} min of stages, one thread each: {machine['processor']}, "
        f"{machine['cores']} cores; Python {machine['python']}, torch {machine['torch']}.\n\n"
        f"<details markdown>\n<summary>All tables</summary>\n\n{text.rstrip()}\n\n</details>\n"
    )


def headline(results: Mapping[str, Any]) -> str:
    """The main numbers of an experiment in three sentences: the refined method beside what it is compared with."""
    metrics, methods = results["metrics"], results["methods"]
    questions = list(metrics["identity"])
    refined = [name for name, method in methods.items() if method["corrections"] or method["confined"]]
    best = refined[0] if refined else list(methods)[-1]

    def values(method: str, name: str, digits: int) -> str:
        return " / ".join(f"{metrics[method][do][name].value:.{digits}f}" for do in questions)

    how = {True: ", corrected and confined", False: ""}[bool(refined)]
    others = [f"Unchanged image {values('identity', 'mape', 1)} %"]
    others += [f"Reg-CFT {values('reg_cft', 'mape', 1)} %"] if "reg_cft" in methods else []
    floor = " / ".join(f"{results['evaluator_floor'][do]:.1f}" for do in questions)
    return (
        f"**{TITLES.get(best.removesuffix('_refined'), best)}{how}: MAPE {values(best, 'mape', 1)} %** for "
        f"do({' / '.join(questions)}). {'; '.join(others)}; the evaluator's own error {floor} %. "
        f"Mean leakage {values(best, 'leakage_mean', 2)} %."
    )


def forest(metrics: Estimates) -> Any:
    """A panel a metric and question: every method's value and interval."""
    from matplotlib.figure import Figure  # lazily: slow to import

    methods = [name for name in metrics if name != "identity"]
    questions = list(metrics["identity"])
    shown = [name for name in FIGURE if any(_known(metrics[m][do][name]) for m in methods for do in questions)]
    figure = Figure(
        figsize=(1.6 + 2.1 * len(shown), 0.6 + len(questions) * (0.5 + 0.22 * len(methods))), layout="constrained"
    )
    axes = figure.subplots(len(questions), len(shown), squeeze=False, sharey=True, sharex="col")
    for row, do in zip(axes, questions, strict=True):
        for axis, name in zip(row, shown, strict=True):
            for place, method in enumerate(reversed(methods)):
                found = metrics[method][do][name]
                if _known(found):
                    axis.plot([found.low, found.high], [place, place], color="#3d8be8", linewidth=2)
                    axis.plot(found.value, place, "o", color="#e8553d", markersize=4)
            axis.set_yticks(range(len(methods)), [method.replace("_", " ") for method in reversed(methods)], fontsize=8)
            axis.tick_params(axis="x", labelsize=7)
            axis.grid(axis="x", alpha=0.3)
            axis.set_title(f"do({do})" if name == shown[0] else "", fontsize=8, loc="left")
    for axis, name in zip(axes[-1], shown, strict=True):
        axis.set_xlabel(FIGURE[name], fontsize=8)
    return figure


def _known(found: Estimate) -> bool:
    return found.value == found.value and found.low == found.low
