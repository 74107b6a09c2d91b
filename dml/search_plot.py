"""The picture of a search: its history, each option against the metric, and which options mattered."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dml import record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from optuna import Study
    from optuna.trial import FrozenTrial

COLUMNS = 3
BLUE, GREY, RED = "#3b6ea5", "#9a9a9a", "#c0392b"
FEWEST = 4  # trials that say anything about importance


def draw(study: "Study", metric: str, path: Path) -> None:
    """Write the picture aside, then rename it."""
    from matplotlib.figure import Figure
    from optuna.trial import TrialState

    complete = study.get_trials(states=(TrialState.COMPLETE,))
    pruned = [t for t in study.get_trials(states=(TrialState.PRUNED,)) if t.intermediate_values]
    names = sorted({name for trial in complete for name in trial.params})
    weights = importances(study, complete)
    panels = 1 + len(names) + (weights is not None)
    lines = -(-panels // COLUMNS)
    figure = Figure(figsize=(4.2 * min(panels, COLUMNS), 3.2 * lines), layout="constrained")
    axes = [figure.add_subplot(lines, min(panels, COLUMNS), n + 1) for n in range(panels)]
    history(axes[0], complete, pruned, metric)
    for axis, name in zip(axes[1:], names, strict=False):
        against(axis, name, complete, pruned, metric)
    if weights is not None:
        order = sorted(weights, key=lambda name: weights[name])
        axes[-1].barh(order, [weights[name] for name in order], color=BLUE)
        axes[-1].set(title="importance (fANOVA)", xlim=(0, 1), xlabel="share of the variance")
    with record.aside(path) as file:
        figure.savefig(file, format="png", dpi=110)


def importances(study: "Study", complete: list["FrozenTrial"]) -> dict[str, float] | None:
    """Share of the metric's variance that each option explains, by fANOVA (Hutter et al., ICML 2014).

    None where there are too few trials, or one option, or all trials are equal.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    values = {trial.value for trial in complete}
    if len(complete) < FEWEST or len(values) < 2 or len(complete[0].params) < 2:
        return None
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def reached(trial: "FrozenTrial") -> float:
    """The metric of a trial; of one that was stopped, the best of its epochs."""
    if trial.state.name == "COMPLETE" and trial.value is not None:
        return trial.value
    return max(trial.intermediate_values.values())


def history(
    axis: "Axes", complete: list["FrozenTrial"], pruned: list["FrozenTrial"], metric: str
) -> None:
    """Every trial in its order, and the best so far."""
    numbers = [trial.number + 1 for trial in complete]
    values = np.array([reached(trial) for trial in complete])
    axis.plot(numbers, np.maximum.accumulate(values), color=BLUE, lw=1, label="best so far")
    axis.scatter(numbers, values, color=BLUE, s=18, label="trial")
    if pruned:
        where = [trial.number + 1 for trial in pruned]
        axis.scatter(
            where, [reached(t) for t in pruned], color=GREY, s=18, marker="x", label="stopped"
        )
    axis.set(xlabel="trial", ylabel=f"{metric}, validation classes", title="history")
    axis.legend(fontsize="small")


def against(
    axis: "Axes",
    name: str,
    complete: list["FrozenTrial"],
    pruned: list["FrozenTrial"],
    metric: str,
) -> None:
    """One option against the metric, the best trial marked."""
    from matplotlib.ticker import LogLocator, NullLocator

    best = max(complete, key=reached)
    for trials, colour, marker in ((pruned, GREY, "x"), (complete, BLUE, "o"), ([best], RED, "o")):
        values = [trial.params[name] for trial in trials]
        if not all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in values
        ):
            values = [str(value) for value in values]
        axis.scatter(values, [reached(t) for t in trials], color=colour, s=18, marker=marker)
    if getattr(best.distributions[name], "log", False):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
        axis.xaxis.set_minor_locator(NullLocator())
    axis.set(xlabel=name, ylabel=metric, title=name)
