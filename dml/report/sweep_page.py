"""One self-contained HTML page of a sweep: mean and spread of every combination, and each of its jobs."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from dml import record
from dml.errors import RunError
from dml.evaluation.statistics import Spread, spread
from dml.report import figures
from dml.report.page import FILE
from dml.report.page_template import render

PLAN = "sweep.json"  # what a sweep's directory holds of what was typed
SEED = "seed"  # the option over which means are taken
PREFERRED = ("recall@1", "map@r")  # metrics that are drawn, where they were measured
DRAWN = 2  # of them


@dataclass(frozen=True)
class JobLine:
    """A job.  values: of the options that vary.  metrics: of the test classes; None: it is not finished.

    link: of its own page, relative to this one; None: it has none.  directory: from the sweep's.
    """

    values: dict[str, str]
    finished: dict[str, Any] | None
    link: str | None
    directory: str

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the test classes."""
        return {} if self.finished is None else self.finished["metrics"]["test"]

    @property
    def minutes(self) -> float:
        """Of the whole job."""
        return 0.0 if self.finished is None else self.finished["seconds"]["total"] / 60


@dataclass(frozen=True)
class Combination:
    """The jobs that differ in their seed alone.

    spreads: metric -> over the finished ones.  val: of the metric that chooses on the validation classes.
    strips: metric -> picture.
    """

    values: dict[str, str]
    jobs: list[JobLine]
    spreads: dict[str, Spread]
    val: Spread | None
    strips: dict[str, Markup]


def write(directory: Path, out: Path | None = None) -> Path:
    """Write the page of a sweep aside, then rename it; returns its path.

    out: the file; None: FILE in the sweep's directory.  Jobs that are not finished are listed as such.

    Raises RunError: no sweep, a job's record that is none, or nowhere to write.
    """
    path = directory / FILE if out is None else out
    if path.is_dir() or not path.parent.is_dir():
        what = "is a directory" if path.is_dir() else "lies in a directory that does not exist"
        raise RunError(f"{path} {what}: give the page a file's name.")
    if not (directory / PLAN).is_file():
        raise RunError(f"{directory} holds no {PLAN}: it is no sweep (dml-train -m makes one).")
    plan = record.read_json(directory / PLAN)
    try:
        text = page(plan, directory, path.parent)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise RunError(f"{directory / PLAN} is not as dml-train -m writes it ({what}).") from error
    with record.aside(path) as file:
        file.write(text.encode())
    return path


def page(plan: Mapping[str, Any], directory: Path, beside: Path) -> str:
    """The page as text; links start from the folder `beside`."""
    varied = list(plan["varied"])
    jobs = [job_line(entry, varied, directory, beside) for entry in plan["jobs"]]
    keys = [key for key in varied if key != SEED]
    metrics = list(dict.fromkeys(name for job in jobs for name in job.metrics))
    drawn = [name for name in PREFERRED if name in metrics] or metrics[:DRAWN]
    combinations = combined(jobs, keys, drawn)
    done = [job for job in jobs if job.finished is not None]
    chosen_by = sorted(
        {job.finished["config"]["selection"]["metric"] for job in done if job.finished}
    )
    data = sorted({job.finished["data"]["name"] for job in done if job.finished})
    return render(
        "sweep.html.j2",
        ("theme.js",),
        title=f"Sweep over {', '.join(varied)}" if varied else "Sweep",
        name=directory.absolute().name,
        command=f"{plan['program']} -m {shlex.join(plan['words'])}",
        varied=varied,
        keys=keys,
        metrics=metrics,
        drawn=drawn,
        scales={name: figures.scale(*range_of(jobs, keys, name)) for name in drawn if done},
        combinations=combinations,
        jobs=jobs,
        done=len(done),
        data=data,
        chosen_by=", ".join(chosen_by),
        minutes=sum(job.minutes for job in jobs),
        seeds=SEED in varied,
    )


def job_line(
    entry: Mapping[str, Any], varied: Sequence[str], directory: Path, beside: Path
) -> JobLine:
    """A job of the plan, as it stands now."""
    typed = dict(word.lstrip("+").split("=", 1) for word in entry["words"] if "=" in word)
    folder = directory / entry["directory"]
    own_page = folder / FILE
    link = None
    if own_page.is_file():
        link = quote(Path(os.path.relpath(own_page, beside)).as_posix())
    return JobLine(
        values={key: typed[key] for key in varied},
        finished=record.read(folder) if (folder / record.FILE).is_file() else None,
        link=link,
        directory=entry["directory"],
    )


def grouped(jobs: Sequence[JobLine], keys: Sequence[str]) -> dict[tuple[str, ...], list[JobLine]]:
    """Jobs that agree in the options `keys`, in the order of the sweep."""
    found: dict[tuple[str, ...], list[JobLine]] = {}
    for job in jobs:
        found.setdefault(tuple(job.values[key] for key in keys), []).append(job)
    return found


def combined(
    jobs: Sequence[JobLine], keys: Sequence[str], drawn: Sequence[str]
) -> list[Combination]:
    """Means and pictures of every combination."""
    result = []
    ranges = {name: range_of(jobs, keys, name) for name in drawn if any(j.metrics for j in jobs)}
    for values, members in grouped(jobs, keys).items():
        done = [job for job in members if job.finished is not None]
        names = dict.fromkeys(name for job in done for name in job.metrics)
        spreads = {
            name: spread([job.metrics[name] for job in done if name in job.metrics])
            for name in names
        }
        val = [value for job in done if (value := val_of(job)) is not None]
        result.append(
            Combination(
                values=dict(zip(keys, values, strict=True)),
                jobs=members,
                spreads=spreads,
                val=spread(val) if val else None,
                strips={
                    name: strip(done, name, spreads[name], *ranges[name])
                    for name in drawn
                    if name in spreads
                },
            )
        )
    return result


def val_of(job: JobLine) -> float | None:
    """A job's metric on the validation classes, the one that chose its checkpoint."""
    assert job.finished is not None
    val = job.finished["metrics"]["val"] or {}
    return val.get(job.finished["config"]["selection"]["metric"])


def strip(jobs: Sequence[JobLine], name: str, of_all: Spread, low: float, high: float) -> Markup:
    """A metric of each job, their mean, and one standard deviation to either side."""
    reach = of_all.sd or 0.0
    marks = [figures.Mark(of_all.mean, "mean", "diamond", of_all.mean - reach, of_all.mean + reach)]
    marks += [figures.Mark(job.metrics[name], "one") for job in jobs if name in job.metrics]
    return figures.strip(marks, low, high)


def range_of(jobs: Sequence[JobLine], keys: Sequence[str], name: str) -> tuple[float, float]:
    """From the least to the greatest value of a metric and what reaches around the means."""
    ends: list[float] = []
    for members in grouped(jobs, keys).values():
        values = [job.metrics[name] for job in members if name in job.metrics]
        if values:
            found = spread(values)
            reach = found.sd or 0.0
            ends += [*values, found.mean - reach, found.mean + reach]
    if not ends:
        return 0.0, 1.0
    low, high = min(ends), max(ends)
    room = (high - low) * 0.05 or 0.05
    return low - room, high + room
