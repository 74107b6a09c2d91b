"""`dml-report`: keep records as evidence, make tables and pages of them.  Torch-free up to the pages."""

import csv
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dml.config import compose
from dml.errors import ConfigurationError, Problem, RunError
from dml.report import records, write

log = logging.getLogger("dml")

HELP = """Keep records as evidence, and make tables and pages of them.

  dml-report add=DIR               take the record of a finished run into experiments/records;
                                   add=[DIR,DIR], add='runs/birds100/*': several, all or none;
                                   add=FILE.json: an evaluation of dml-eval (folds, encoders as they come)
  dml-report add=DIR replace=true  in place of another run of the same seed
  dml-report                       make experiments/RESULTS.md, results.csv, plots and the README's block
  dml-report check=true            compare them with the records, and the records with their experiments;
                                   exit code 1 and the differences if anything is stale
  dml-report run=DIR               a page of one run, by itself in one file; out=FILE says where;
                                   data.root=DIR where its images lie elsewhere now
  dml-report sweep=DIR             a page of a sweep

root=DIR is the checkout whose experiments/ and README.md are meant; default: this one.
"""
ACTIONS = ("add", "check", "run", "sweep")
OPTIONS = (*ACTIONS, "replace", "out", "root", "data.*", "backbone.weights")


@dataclass
class Request:
    """What the words ask for.  action: one of ACTIONS, or build.  elsewhere: options of a page's run."""

    action: str = "build"
    value: str = ""
    out: str | None = None
    root: str | None = None
    replace: bool = False
    elsewhere: dict[str, str] = field(default_factory=dict)


def run(words: list[str]) -> int:
    """Do as the words say; returns the exit code.

    Raises ConfigurationError with everything wrong with the words, RunError where the work fails.
    """
    if any(word in ("--help", "-h") for word in words):
        print(HELP)
        return 0
    request = parsed(words)
    actions: dict[str, Callable[[Request], None]] = {
        "add": add,
        "build": build,
        "check": check,
        "run": page,
        "sweep": sweep_page,
    }
    actions[request.action](request)
    return 0


def parsed(words: list[str]) -> Request:
    """The words as a request.  Raises ConfigurationError with everything wrong with them."""
    request, problems, check_word = Request(), [], False
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not (key in OPTIONS or key.startswith("data.")):
            what = f"is no option of dml-report. {compose.nearest(key, list(OPTIONS), '')}"
            problems.append(Problem(word, what))
        elif not value:
            problems.append(Problem(word, f"has no value. See dml-report --help for {key}=..."))
        elif key in ("check", "replace") and value not in ("true", "false"):
            problems.append(Problem(word, f"must be true or false: {key}=true."))
        elif key == "check":
            check_word = check_word or value == "true"
        elif key == "replace":
            request.replace = value == "true"
        elif key in ACTIONS and request.value:
            problems.append(Problem(word, f"{request.action}=... is asked for already."))
        elif key in ACTIONS:
            request.action, request.value = key, value
        elif key in ("out", "root"):
            setattr(request, key, value)
        else:
            request.elsewhere[key] = value
    if check_word and request.value:
        problems.append(Problem("check=true", f"goes by itself, without {request.action}=..."))
    elif check_word:
        request.action = "check"
    belongs = {
        f"out={request.out}": (request.out is not None, ("run", "sweep")),
        "replace=true": (request.replace, ("add",)),
        **{f"{k}={v}": (True, ("run",)) for k, v in request.elsewhere.items()},
    }
    for word, (given, actions) in belongs.items():
        if given and request.action not in actions:
            owner = " and ".join(f"{action}=..." for action in actions)
            problems.append(Problem(word, f"belongs to {owner} alone. Drop it."))
    if request.root is not None and not Path(request.root).expanduser().is_dir():
        problems.append(Problem(f"root={request.root}", "is no directory."))
    for name in (request.value,) if request.action in ("run", "sweep") else ():
        if not Path(name).expanduser().is_dir():
            problems.append(Problem(f"{request.action}={name}", "is no directory."))
    if problems:
        raise ConfigurationError(problems)
    return request


def root_of(request: Request) -> Path:
    """The checkout that is meant: named, or the one that this package lies in, or the current directory."""
    if request.root is not None:
        return Path(request.root).expanduser()
    checkout = compose.config_dir().parent
    return Path() if (checkout / "__init__.py").is_file() else checkout


def several(value: str) -> list[Path]:
    """`a`, `[a,b]`, `['a,b',c]` or a pattern with * as paths; those of a pattern sorted.

    Raises ConfigurationError: a pattern that nothing matches, an empty list.
    """
    names = [value]
    if value.startswith("[") and value.endswith("]"):
        try:
            names = next(csv.reader([value[1:-1]], quotechar="'", skipinitialspace=True), [])
        except csv.Error as error:
            raise ConfigurationError([Problem(f"add={value}", f"is no list: {error}.")]) from error
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        within = Path(path.anchor)
        try:
            found += sorted(within.glob(str(path.relative_to(within)))) if "*" in name else [path]
        except (ValueError, NotImplementedError) as error:  # such as a**b
            raise ConfigurationError(
                [Problem(f"add={name}", f"is no pattern: {error}.")]
            ) from error
    if not found:
        raise ConfigurationError([Problem(f"add={value}", "names nothing that is there.")])
    return found


def add(request: Request) -> None:
    """Take records in."""
    root = root_of(request)
    for run, one, is_new in records.add(several(request.value), root, replace=request.replace):
        where = (records.FOLDER / one.file).as_posix()
        if not is_new:
            log.info("%s is there already: %s", run, where)
            continue
        log.info("Added %s as %s", run, where)
        if one.record[records.IN_HISTORY] is not True:
            commit = one.record["code"]["commit"]
            log.info(
                "  Its commit %s is not in the history of this checkout; the tables say so.", commit
            )
    log.info("dml-report makes the tables anew.")


def build(request: Request) -> None:
    """Write what is made of the records."""
    root = root_of(request)
    report = write.read(root)
    for path in write.write(report, root):
        log.info("%s %s", "Written:" if path.exists() else "Removed:", path.relative_to(root))
    log.info("%s. Everything is as the records say.", counted(report.evidence))
    tell_of_block(root)


def check(request: Request) -> None:
    """Compare what is there with the records.  Raises RunError with the differences."""
    root = root_of(request)
    report = write.read(root)
    if report.problems:
        lines = "\n".join(f"  {problem}" for problem in report.problems)
        raise RunError(f"these records are no evidence; tables were not looked at.\n{lines}")
    if stale := write.stale(report, root):
        lines = "\n".join(f"  {line}" for line in stale)
        raise RunError(f"not as the records say; dml-report makes them anew.\n{lines}")
    log.info("%s. Everything is as the records say.", counted(report.evidence))
    tell_of_block(root)


def counted(number: int) -> str:
    """`1 record`."""
    return f"{number} record{'' if number == 1 else 's'}"


def tell_of_block(root: Path) -> None:
    """Say that the README shows no results, where it does not."""
    if not write.has_block(root):
        log.warning(
            "NOT CHECKED: %s has no place for the results. Two lines make one:\n  %s\n  %s",
            *(write.README, write.BEGIN, write.END),
        )


def page(request: Request) -> None:
    """Write a page of one run."""
    from dml.report import page as run_page

    out = None if request.out is None else Path(request.out).expanduser()
    path = run_page.write(Path(request.value).expanduser(), out, request.elsewhere or None)
    log.info("Page: %s", path)


def sweep_page(request: Request) -> None:
    """Write a page of a sweep."""
    from dml.report import sweep_page as page_of_sweep

    out = None if request.out is None else Path(request.out).expanduser()
    log.info("Page: %s", page_of_sweep.write(Path(request.value).expanduser(), out))
