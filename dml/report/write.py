"""The files that are made of the records: RESULTS.md, results.csv, plots and the README's block.

Torch-free; matplotlib is imported only where a plot is drawn.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from dml import record
from dml.errors import RunError
from dml.evaluation.statistics import Spread
from dml.report import claims, plots, records, results
from dml.report.results import Gain, Row, Section

FOLDER = Path("experiments")
TABLES = FOLDER / "RESULTS.md"
TABLE_CSV = FOLDER / "results.csv"
PLOTS = FOLDER / "plots"
README = Path("README.md")
BEGIN, END = "<!-- results -->", "<!-- /results -->"
SHOWN = 40  # lines of one file's differences
METRICS = {"recall@1": "Recall@1", "map@r": "MAP@R", "r_precision": "R-precision"}


@dataclass(frozen=True)
class Report:
    """What the records say, and what is wrong with them.

    problems: lines, each naming a record and the mend; there are no sections then.
    """

    sections: list[Section]
    problems: list[str]
    evidence: int

    @property
    def plots(self) -> list[plots.Plot]:
        """The pictures that there are points for."""
        return plots.of(self.sections)


def read(root: Path) -> Report:
    """All evidence of a checkout, checked.  Raises RunError: a peer's table that cannot be read."""
    listed = claims.listed()
    evidence, wrong = records.load(root)
    wrong += records.check(evidence)
    known = {one.name for one in listed}
    gone = sorted({e.experiment for e in evidence} - known)
    wrong += [f"{name}/: there is no configs/experiment/{name}.yaml." for name in gone]
    wrong = [f"{records.FOLDER.as_posix()}/{line}" for line in wrong]
    sections = [] if wrong else results.sections(listed, evidence, results.peers(root))
    return Report(sections, wrong, len(evidence))


def write(report: Report, root: Path) -> list[Path]:
    """Write every file aside, then rename it; returns those that changed.

    Raises RunError: problems with the records, of which nothing may be made.
    """
    if report.problems:
        raise RunError("nothing was written.\n" + "\n".join(f"  {p}" for p in report.problems))
    changed = []
    for path, text in texts(report, root).items():
        if not path.is_file() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            put(path, text)
            changed.append(path)
    wanted = {root / PLOTS / plot.file: plot for plot in report.plots}
    for path, plot in wanted.items():
        if not (path.is_file() and plots.current(path.read_text(), plot)):
            path.parent.mkdir(parents=True, exist_ok=True)
            put(path, plots.draw(plot))
            changed.append(path)
    for path in drawn(root):
        if path not in wanted:
            path.unlink()
            changed.append(path)
    return changed


def put(path: Path, text: str) -> None:
    """Write a text aside, then rename it."""
    with record.aside(path) as file:
        file.write(text.encode())


def stale(report: Report, root: Path) -> list[str]:
    """Differences between the files and what the records give today, line by line; [] if there are none."""
    found = []
    for path, text in texts(report, root).items():
        there = path.read_text() if path.is_file() else ""
        name = path.relative_to(root).as_posix()
        lines = list(
            difflib.unified_diff(
                *(there.splitlines(), text.splitlines()),
                *(name, f"{name}, of the records"),
                lineterm="",
                n=0,
            )
        )
        found += lines[:SHOWN]
        found += (
            [f"... and {len(lines) - SHOWN} lines more of {name}"] if len(lines) > SHOWN else []
        )
    wanted = {root / PLOTS / plot.file: plot for plot in report.plots}
    for path, plot in wanted.items():
        name = path.relative_to(root).as_posix()
        if not path.is_file():
            found.append(f"{name} is not there")
        elif not plots.current(path.read_text(), plot):
            found.append(f"{name} shows other data, or was changed by hand")
    found += [
        f"{path.relative_to(root).as_posix()} shows what no record says"
        for path in drawn(root)
        if path not in wanted
    ]
    return found


def drawn(root: Path) -> list[Path]:
    """The pictures that are there."""
    return sorted((root / PLOTS).glob("*.svg"))


def has_block(root: Path) -> bool:
    """Whether the README says where its block goes."""
    path = root / README
    return path.is_file() and BEGIN in path.read_text() and END in path.read_text()


def texts(report: Report, root: Path) -> dict[Path, str]:
    """Path -> content, of the files that are text alone."""
    found = {
        root / TABLES: markdown(report),
        root / TABLE_CSV: results.as_csv(report.sections),
    }
    if has_block(root):
        before, _, rest = (root / README).read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        found[root / README] = f"{before}{BEGIN}\n{block(report)}{END}{after}"
    return found


def markdown(report: Report) -> str:
    """experiments/RESULTS.md."""
    from jinja2 import Environment, StrictUndefined

    source = files("dml.report").joinpath("results.md.j2").read_text(encoding="utf-8")
    shape = Environment(  # Markdown, not HTML
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return shape.from_string(source).render(
        sections=[
            {
                "title": section.family.title,
                "about": section.family.about,
                "own": own_tables(section.own),
                "claims": claim_table(section.claims) if section.claims else "",
                "plots": [p for p in report.plots if p.family == section.family.title],
                "commands": commands(section.rows),
                "notes": noted(section),
            }
            for section in report.sections
        ],
        counts=results.counts(report.sections),
        overall=[plot for plot in report.plots if not plot.family],
        records=report.evidence,
        folder=PLOTS.relative_to(FOLDER).as_posix(),
    )


def claim_table(rows: Sequence[Row]) -> str:
    """Ours beside the published numbers."""
    head = [
        *("experiment", "metric", "published", "its epoch", "ours", "sd", "n", "95 % interval"),
        *("difference", "tolerance", "verdict", "minutes", "hardware", "commit", "source"),
    ]
    words = {"last": "last", "best_val": "best on validation", "test_max": "best on test"}
    body = [
        [
            row.experiment if row.main else "",
            named(row),
            fixed(row.published),
            words[row.selected_on],
            *spread_cells(row.ours),
            signed(row.difference),
            "" if row.tolerance is None else f"{row.tolerance:g}",
            row.verdict,
            *circumstances(row),
            row.source if row.main else "",
        ]
        for row in rows
    ]
    return table(head, body, right=(2, 4, 5, 6, 8, 9, 11))


def own_tables(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Metric and its table, of experiments without a claim."""
    found = []
    for metric in dict.fromkeys(row.metric for row in rows):
        chosen = [row for row in rows if row.metric == metric]
        has_peer = any(row.peer for row in chosen)
        trains = not all(row.command.startswith("dml-eval") for row in chosen)
        head = ["experiment", *(["frozen", "untrained", "trained"] if trains else ["ours"])]
        head += ["sd", "n", "95 % interval"]
        head += ["peer", "sd", "n", "difference", "95 % interval"] if has_peer else []
        head += ["minutes", "hardware", "commit"]
        body = [
            [
                row.experiment if row.models == "single" else f"{row.experiment}, {row.models}",
                *(
                    [fixed(row.frozen), fixed(row.untrained and row.untrained.mean)]
                    if trains
                    else []
                ),
                *(spread_cells(row.ours) if row.ours else ["not run", "", "", ""]),
                *([*spread_cells(row.peer)[:3], *gain_cells(row.against_peer)] if has_peer else []),
                *circumstances(row),
            ]
            for row in chosen
        ]
        text = ("experiment", "95 % interval", "hardware", "commit")
        right = [column for column, name in enumerate(head) if name not in text]
        found.append((METRICS.get(metric, metric), table(head, body, right)))
    return found


def named(row: Row) -> str:
    """The metric, and of which models."""
    name = METRICS.get(row.metric, row.metric)
    return name if row.models == "single" else f"{name}, {row.models}"


def spread_cells(found: Spread | None) -> list[str]:
    """Mean, sd, n, interval; empty where there is nothing."""
    if found is None:
        return ["", "", "", ""]
    return [fixed(found.mean), fixed(found.sd), str(found.n), interval(found.low, found.high)]


def gain_cells(found: Gain | None) -> list[str]:
    """Difference and its interval."""
    return ["", ""] if found is None else [signed(found.mean), interval(found.low, found.high, "+")]


def circumstances(row: Row) -> list[str]:
    """Minutes, hardware, commits."""
    minutes = "" if row.minutes is None else f"{row.minutes:.1f}"
    return [minutes, row.hardware, " ".join(f"`{commit[:7]}`" for commit in row.commits)]


def fixed(value: float | None) -> str:
    """Percent, two places."""
    return "" if value is None else f"{value:.2f}"


def signed(value: float | None) -> str:
    """Percentage points."""
    return "" if value is None else f"{value:+.2f}"


def interval(low: float | None, high: float | None, sign: str = "") -> str:
    """`61.02 to 62.51`."""
    return "" if low is None or high is None else f"{low:{sign}.2f} to {high:{sign}.2f}"


def table(head: Sequence[str], body: Iterable[Sequence[str]], right: Iterable[int]) -> str:
    """A Markdown table; right: columns of numbers."""
    rule = ["--:" if column in set(right) else "---" for column in range(len(head))]
    lines = [list(head), rule, *body]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |" for cells in lines
    )


def commands(rows: Sequence[Row]) -> list[str]:
    """How to run each experiment, once."""
    return list(dict.fromkeys(row.command for row in rows))


def noted(section: Section) -> list[str]:
    """Notes and whose they are."""
    total = len({row.experiment for row in section.rows})
    found = []
    for text, names in section.notes.items():
        whose = "all" if len(names) == total else ", ".join(names)
        found.append(f"{text} ({whose})")
    return found


def block(report: Report) -> str:
    """The README's block."""
    found = results.counts(report.sections)
    lines = []
    for section in report.sections:
        rows = [row for row in section.own if row.ours is not None]
        if rows:
            lines += [short_table(section, rows), ""]
            picture = next(p for p in report.plots if p.family == section.family.title)
            lines += [f"![{picture.title}]({(PLOTS / picture.file).as_posix()})", ""]
    aims = sum(found.values())
    told = ", ".join(f"{number} {word}" for word, number in found.items())
    lines.append(
        f"Of {aims} published numbers that are aimed at: {told}. All tables, with sources, commands and "
        f"known differences: [{TABLES.as_posix()}]({TABLES.as_posix()})."
    )
    return "\n".join(lines) + "\n"


def short_table(section: Section, rows: Sequence[Row]) -> str:
    """Mean and interval of a family without claims, one line an experiment."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    has_peer = any(row.peer for row in rows)
    head = [section.family.title]
    for metric in metrics:
        name = METRICS.get(metric, metric)
        head += [f"{name} frozen", "trained", *(["less the peer's"] if has_peer else [])]
    head.append("n")
    body = []
    for one in dict.fromkeys((row.experiment, row.models) for row in rows):
        own = [row for row in rows if (row.experiment, row.models) == one]
        name = one[0].removeprefix(section.family.prefix)
        cells = [name if one[1] == "single" else f"{name}, {one[1]}"]
        for row in own:
            cells += [fixed(row.frozen), ranged(row.ours)]
            cells += [signed(row.against_peer and row.against_peer.mean)] if has_peer else []
        body.append([*cells, str(own[0].ours.n if own[0].ours else "")])
    return table(head, body, right=range(1, len(head)))


def ranged(found: Spread | None) -> str:
    """`61.02 ± 0.71`: the mean and half its 95 % interval."""
    if found is None:
        return ""
    if found.high is None:
        return fixed(found.mean)
    return f"{found.mean:.2f} ± {found.high - found.mean:.2f}"
