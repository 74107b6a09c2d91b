"""`dml-index tune=...`, `calibrate=...` and `check=...`."""

import logging
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from dml import tables
from dml.data.progress import share_bar
from dml.errors import ConfigurationError, Problem, RunError
from dml.index import embedding, files, inputs, measuring, writing
from dml.index.hits import Calibration
from dml.index.making import embed, listed, plan_of, summary
from dml.index.opening import open_local, open_named
from dml.index.page import one_line
from dml.index.searchable import Searchable
from dml.index.servers import ServerIndex
from dml.index.store import Index

log = logging.getLogger("dml")

OF_IMAGES = {"encoder", "labels", "split", "batch_size", "workers", "device"}


def tune(given: dict[str, Any]) -> int:
    """`tune=INDEX`: tune.csv and tune.png."""
    from dml.index import tuning

    if find_spec("matplotlib") is None:
        what = "draws with matplotlib: pip install 'dml[index]'."
        raise ConfigurationError([Problem(f"tune={given['tune']}", what)])
    index = open_local("tune", given["tune"])
    out = Path(given.get("out", given["tune"])).expanduser().absolute()
    if not out.is_dir():
        raise ConfigurationError([Problem(f"out={given.get('out')}", "is no directory.")])
    with share_bar("Tuning") as progress:
        rows = tuning.sweep(index, progress)
    title = f"{len(index):,} vectors of {index.dim} numbers, {index.similarity}"
    try:
        tuning.write_csv(rows, out / "tune.csv")
        tuning.plot(rows, out / "tune.png", title)
    except OSError as error:
        raise RunError(f"cannot write to {out} ({error.strerror or error}).") from error
    tables.show(
        measuring.table(tuning.frontier(rows)),
        f"\nNo other is better in recall, speed and memory at once ({len(rows)} tried):",
        measuring.footnote(rows[0], index.dim),
    )
    log.info("All that was tried: %s\nPlot: %s", out / "tune.csv", out / "tune.png")
    best = tuning.best_above(rows, 0.99)
    if best is not None:
        name = "flat" if best.kind == "Flat" else best.kind
        parameters = f" parameters={best.parameters}" if best.parameters else ""
        log.info(
            "Quickest of recall 0.99 and above: dml-index rebuild=%s index=%s%s",
            given["tune"],
            name,
            parameters,
        )
    return 0


def calibrate(given: dict[str, Any]) -> int:
    """`calibrate=INDEX fmr=...`."""
    from dml.index import calibrating

    index = open_named("calibrate", given["calibrate"])
    vectors, codes, source = labelled(index, given)
    with share_bar("Comparing pairs") as progress:
        found = calibrating.calibrate(
            vectors, codes, index.similarity, given["fmr"], source, progress
        )
    with files.locked(index.path):
        writing.note(index.path, calibration=asdict(found))
    tables.show(calibration_table(found), "\nThe same thing or not")
    others = len(index)
    index.close()
    log.info(
        "%s\nAmong %s images of other things a query meets about %.3g that pass for the same.",
        *(found.sentence(), f"{others:,}", found.fmr * others),
    )
    if given.keys() & {"images", "embeddings"}:
        return 0
    log.info(
        "It was measured on the index's own images; for an honest rate these must be of classes that the "
        "encoder was not trained on."
    )
    return 0


def calibration_table(found: Calibration) -> Table:
    """Threshold, rates and their intervals."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "value", "95 % interval over classes"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("threshold", f"{found.threshold:.4f}", "")
    table.add_row(
        "false matches (FMR)", f"{found.fmr:.6f}", "[{:.6f}, {:.6f}]".format(*found.fmr_interval)
    )
    table.add_row(
        "false non-matches (FNMR)",
        f"{found.fnmr:.4f}",
        "[{:.4f}, {:.4f}]".format(*found.fnmr_interval),
    )
    return table


def labelled(index: Searchable, given: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, str]:
    """Vectors, class numbers and the origin of the images to calibrate with.  Raises ConfigurationError."""
    from dml.index import calibrating
    from dml.index.vectors import prepared

    where, rows = f"calibrate={given['calibrate']}", np.empty(0, dtype=np.int64)
    if "images" in given and "embeddings" in given:
        raise ConfigurationError([Problem(where, "images=... or embeddings=..., not both.")])
    if "images" in given:
        bundle = inputs.bundle_of(index, given.get("encoder"))
        found = listed("images", given)
        plan = plan_of("calibrate", bundle, found, given)
        with files.locked(index.path):
            partial = embedding.Partial(index.path, plan)
            source, unreadable = embed(found, bundle, partial, given)
            partial.clear()
        if unreadable:
            log.info("%s files could not be read and are left out.", f"{len(unreadable):,}")
        names, vectors, origin = (
            source.labels,
            prepared(source.embeddings, index.similarity),
            given["images"],
        )
    elif "embeddings" in given:
        source, _ = inputs.embeddings_of(
            "embeddings", given["embeddings"], labels=given.get("labels")
        )
        if source.embeddings.shape[1] != index.dim:
            what = f"has {source.embeddings.shape[1]} numbers each; the index holds {index.dim}."
            raise ConfigurationError([Problem(f"embeddings={given['embeddings']}", what)])
        names, vectors, origin = (
            source.labels,
            prepared(source.embeddings, index.similarity),
            given["embeddings"],
        )
    else:
        for key in given.keys() & OF_IMAGES:
            raise ConfigurationError([Problem(f"{key}={given[key]}", "goes with images=DIR.")])
        rows, names = labels_in(index)
        vectors, origin = None, "the index itself"
    kept = np.array([n for n, name in enumerate(names) if name is not None], dtype=np.int64)
    if not len(kept):
        raise ConfigurationError(
            [Problem(where, f"{origin} has no labels. Give images=DIR of classes.")]
        )
    _, codes = np.unique([names[n] for n in kept], return_inverse=True)
    drawn = calibrating.drawn(codes)
    chosen = kept[drawn]
    return (
        (index.vectors(rows[chosen]) if vectors is None else vectors[chosen]),
        codes[drawn],
        str(origin),
    )


def labels_in(index: Searchable) -> tuple[np.ndarray, list[str | None]]:
    """Rows and labels of all searchable images."""
    if isinstance(index, ServerIndex):
        images = list(index.everything())
        return np.array([image.row for image in images]), [image.label for image in images]
    assert isinstance(index, Index)
    rows = index.live_rows()
    return rows, index.labels_of(rows)


def check(given: dict[str, Any]) -> int:
    """`check=INDEX`: exit code 1 (RunError) for damage; images that have gone are told."""
    index = open_named("check", given["check"], given.get("root"))
    lines = [f"{summary(index)}."]
    if isinstance(index, ServerIndex):
        lines.append(f"The {index.kind} collection at {index.address} is there.")
        images = [(image.root, image.path) for image in index.everything()]
        gone = [path for root, path in images if root and index.file_of(root, path) is None]
    else:
        assert isinstance(index, Index)
        wrong = index.contradictions()
        if wrong:
            raise RunError(
                "\n".join([f"{index.path} contradicts itself:", *wrong, files.mend(index.path)])
            )
        lines.append(f"All {len(index.manifest['files'])} files are as they were written.")
        gone = [
            item.path
            for item in index.items(index.live_rows())
            if item.file is None and index.has_files
        ]
    if index.rows_removed:
        lines.append(
            f"{index.rows_removed:,} removed images take room until "
            f"dml-index rebuild={given['check']}."
        )
    lines.append(encoder_state(index))
    if index.calibration is not None:
        lines.append(index.calibration.sentence())
    if gone:
        shown = ", ".join(one_line(path) for path in gone[:3])
        lines.append(
            f"{len(gone):,} images are no longer where they were ({shown}): they are found, and not shown. "
            "If the folder has moved, say root=DIR."
        )
    log.info("%s", "\n".join(lines))
    index.close()
    return 0


def encoder_state(index: Searchable) -> str:
    """Whether the encoder is still where it was."""
    if index.encoder_fingerprint is None:
        return "The vectors come from elsewhere; search it by vectors."
    try:
        inputs.bundle_of(index, None)
    except ConfigurationError as error:
        return f"Its encoder cannot be used: {error.problems[0].where} {error.problems[0].what}"
    return f"Its encoder {index.encoder_path} is there ({index.encoder_fingerprint[:12]})."
