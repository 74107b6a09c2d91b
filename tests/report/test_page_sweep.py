"""The page of a sweep: means and spreads of the records, and an honest list of jobs."""

import re
from pathlib import Path

import numpy as np
import pytest
from made_records import made

from dml import record
from dml.errors import RunError
from dml.report import sweep_page

RECALLS = {"circle": {0: 0.60, 1: 0.64, 2: 0.68}, "<b>": {0: 0.5}}


def sweep(folder: Path, recalls=RECALLS, missing=(("<b>", 1),)) -> Path:
    """A sweep's directory as dml-train -m leaves it."""
    jobs = [(loss, seed) for loss, of in recalls.items() for seed in of] + list(missing)
    entries = []
    for number, (loss, seed) in enumerate(jobs):
        name = f"job {number},seed={seed}"
        entries.append(
            {"name": name, "directory": name, "words": [f"loss={loss}", f"+seed={seed}", "x=1"]}
        )
        (folder / name).mkdir(parents=True)
        if seed in recalls.get(loss, {}):
            record.write(made(seed=seed, recall=recalls[loss][seed]), folder / name)
    plan = {
        "format": 1,
        "program": "dml-train",
        "words": ["loss=<b>,circle"],
        "varied": ["loss", "seed"],
    }
    record.write_json({**plan, "jobs": entries}, folder / sweep_page.PLAN)
    return folder


def table(text: str, caption: str) -> list[list[str]]:
    body = next(t for t in re.findall(r"<table.*?</table>", text, re.S) if caption in t)
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.S)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in rows]
    return [[re.sub(r"<[^>]+>", " ", cell).strip() for cell in row] for row in cells]


def test_means_and_deviations_are_those_of_the_records(tmp_path):
    path = sweep_page.write(sweep(tmp_path / "sweep"))
    text = path.read_text()
    head, *rows = table(text, "mean and standard deviation over seeds")
    assert head[:3] == ["loss", "n", "validation recall@1"]
    by_loss = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    values = np.array([0.60, 0.64, 0.68])
    told = by_loss["circle"]
    assert told["n"] == "3"
    assert told["recall@1"].split() == [f"{values.mean():.4f}", "±", f"{values.std(ddof=1):.4f}"]
    assert told["map@r"].split()[0] == f"{values.mean() / 2:.4f}"
    alone = by_loss["&lt;b&gt;"]
    assert alone["n"] == "1 of 2"
    assert alone["recall@1"].split() == ["0.5000", "one", "run"]
    assert "<b>" not in text


def test_every_job_is_listed_and_linked_where_it_has_a_page(tmp_path):
    folder = sweep(tmp_path / "sweep")
    (folder / "job 1,seed=1" / "report.html").write_text("page")
    text = sweep_page.write(folder, tmp_path / "page.html").read_text()
    rows = table(text, "Every job")[1:]
    assert [row[2].split(" ", 1)[1].strip() for row in rows] == ["finished"] * 4 + ["not finished"]
    assert re.findall(r'<td class="long"><a href="([^"]+)"', text) == [
        "sweep/job%201%2Cseed%3D1/report.html"
    ]
    assert "4 of 5 jobs are finished" in text


def test_a_sweep_that_has_finished_nothing(tmp_path):
    text = sweep_page.write(
        sweep(tmp_path / "s", recalls={}, missing=[("a", 0), ("a", 1)])
    ).read_text()
    assert "No job is finished" in text
    assert "nan" not in re.sub(r"<style>.*?</style>|<script>.*?</script>", "", text, flags=re.S)


def test_what_is_no_sweep(tmp_path):
    with pytest.raises(RunError, match="it is no sweep"):
        sweep_page.write(tmp_path)
    with pytest.raises(RunError, match="is a directory"):
        sweep_page.write(tmp_path, tmp_path)
