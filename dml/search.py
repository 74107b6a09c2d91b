"""`dml-train search=NAME`: the options that are best on the validation classes, found with Optuna.

A trial is a job as those of a sweep, without its last part: the test classes stay closed, whatever the
outcome. The study is a file in the search's directory; the same command goes on with it. Torch-free, save for
what runs within a trial's own process.
"""

import itertools
import logging
import math
import shlex
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dml import build, cli, record, tables
from dml.config import check, compose
from dml.data.index import ImageIndex
from dml.errors import ConfigurationError, Interrupted, Problem, RunError
from dml.launchers import Job, Launch, Local, Processes, Submitit
from dml.log_file import log_to
from dml.processes import stoppable, stopped_by
from dml.sweep import (
    SPACE,
    Request,
    alone,
    directory_for,
    key_of,
    make_job,
    say_how_it_ended,
    stopping,
    write_csv,
)

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

log = logging.getLogger("dml")

FILE = "search.json"
STUDY = "study.sqlite3"
RESULT = "trial.json"  # what a trial leaves in its directory when it has ended
TABLE, PLOT = "search.csv", "search.png"
INNER = 0.01  # of an open range of the schema, the share of its width that is left out at the end
KEYS = ("low", "high", "log", "step", "choices")


def run(request: Request, launch: Launch) -> int:
    """Do the search; returns the exit code.  Raises ConfigurationError before anything is written."""
    options = request.options.search
    problems = list(command_problems(request, launch))
    space_, more = space(options.space, request.space)
    if problems or more:
        raise ConfigurationError(problems + more)
    words = resting_upon(options, request)
    composed, index = cli.checked([w for w in words if not w.startswith("run_dir=")])
    distributions, more = resolved(space_, composed.config)
    problems += more + validation_problems(request, composed.config, index)
    problems += list(clashes(words, distributions))
    if problems:
        raise ConfigurationError(problems)
    check_corners(words, distributions)
    trials = options.trials
    if options.sampler == "grid":
        trials = min(trials, math.prod(len(grid(d)) for d in distributions.values()))
    metric = composed.config.selection.metric
    directory = directory_for(request, [option_of(request)], "search")
    if composed.config.dry_run:
        log.info("Nothing is wrong with this search of %d trials. dry_run=true.", trials)
        return 0
    directory.mkdir(parents=True, exist_ok=True)
    with alone(directory):
        log_to(directory)
        same_search(directory, request, distributions)
        searching = Searching(directory, words, distributions, options, metric, trials)
        return searching.run(launch)


def option_of(request: Request) -> str:
    """The file of configs/search that was chosen."""
    assert request.searching is not None
    return request.searching.partition("=")[2] if "=" in request.searching else "own"


def command_problems(request: Request, launch: Launch) -> Iterator[Problem]:
    """Words that do not go with a search."""
    for word in request.words:
        if key_of(word) == "ckpt_path":
            yield Problem(word, "a search finds the checkpoints of its trials. Drop it.")
        if key_of(word) == "trainer.devices" and word != "trainer.devices=1":
            yield Problem(word, "a trial is one process. Drop it.")
    if isinstance(launch, Submitit) and launch.n_jobs is None:
        what = "a trial learns from those before it. Say how many run at a time: launcher.n_jobs=4."
        yield Problem("launcher=submitit", what)


def space(file: DictConfig, typed: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """What is searched: the file's, then the words `search.space.OPTION={...}`; null takes one out."""
    found: dict[str, Any] = typing.cast(dict[str, Any], OmegaConf.to_container(file))
    problems = []
    for word in typed:
        overrides, unread = compose.parse([word])
        problems += unread
        for override in overrides:
            key, value = override.key_or_group.removeprefix(SPACE), override.value()
            if value is None:
                found.pop(key, None)
            elif isinstance(value, dict):
                found[key] = {str(k): v for k, v in value.items()}
            else:
                what = (
                    "is written in braces and, because a shell takes braces apart, in quotes:\n"
                    f"'{SPACE}{key}={{low:1e-5,high:1e-2,log:true}}' or '{SPACE}{key}={{choices:[1,2]}}'."
                )
                problems.append(Problem(word, what))
    if not found and not problems:
        what = (
            f"has nothing to search. Add '{SPACE}optimizer.lr={{low:1e-5,high:1e-2,log:true}}', or "
            f"choose one of search={', '.join(compose.options_of('search'))}."
        )
        problems.append(Problem("search", what))
    return found, problems


def resting_upon(options: DictConfig, request: Request) -> list[str]:
    """The words of every trial: the search's own options, then the command line's.

    Raises ConfigurationError: a word says otherwise than the search.
    """
    given = {key_of(word): word for word in request.words}
    words, problems = [], []
    for key, value in options.options.items():
        word = f"{key}={shown(value)}"
        if given.get(str(key), word) != word:
            what = f"search={option_of(request)} rests upon {word}. Drop one of them."
            problems.append(Problem(given[str(key)], what))
        if str(key) not in given:
            words.append(word)
    if problems:
        raise ConfigurationError(problems)
    return words + request.words


def resolved(
    asked: Mapping[str, Any], config: DictConfig
) -> tuple[dict[str, "BaseDistribution"], list[Problem]]:
    """Optuna's distributions; what the space leaves out comes from the range of the option's schema."""
    found, problems = {}, []
    for key, given in asked.items():
        where = f"{SPACE}{key}"
        unknown = [name for name in given if name not in KEYS]
        if unknown:
            nearest = compose.nearest(unknown[0], list(KEYS), "")
            problems.append(Problem(f"{where}.{unknown[0]}", f"is no part of a space. {nearest}"))
        elif "choices" in given and len(given) > 1:
            problems.append(Problem(where, "has choices, which have no low, high, log or step."))
        else:
            try:
                found[key] = distribution(given, *described(key, config))
            except ValueError as error:
                problems.append(Problem(where, f"{error}."))
    return found, problems


def described(key: str, config: DictConfig) -> tuple[Mapping[str, Any], Any]:
    """What the schema says of an option: the metadata of its field (empty: nothing), its type or None."""
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    schema = build.schema_of(node) if OmegaConf.is_config(node) else None
    fields = getattr(schema, "__dataclass_fields__", {})
    if leaf not in fields:
        return {}, None
    return fields[leaf].metadata, typing.get_type_hints(schema).get(leaf)


def distribution(
    given: Mapping[str, Any], meta: Mapping[str, Any], kind: Any
) -> "BaseDistribution":
    """One option's distribution.  Raises ValueError: no such one."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    kinds = typing.get_args(kind) or (kind,)
    if "choices" in given or "choices" in meta or bool in kinds:
        choices = given.get("choices", meta.get("choices", (False, True)))
        if not isinstance(choices, list | tuple) or len(choices) < 2:
            raise ValueError("choices must be a list of at least two values")
        return CategoricalDistribution(choices)
    low, high = (given.get(name, bound(meta, name)) for name in ("low", "high"))
    for name, value in (("low", low), ("high", high)):
        if value is None:
            raise ValueError(
                f"has no {name}, and the option's own range has no such end. Give {name}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number")
    ends = (low, high, given.get("step", 1))
    whole = int in kinds if kind is not None else all(isinstance(value, int) for value in ends)
    log_scale, step = bool(given.get("log", False)), given.get("step")
    if whole and any(value != int(value) for value in ends):
        raise ValueError("takes whole numbers: low, high and step must be such")
    if low >= high:
        raise ValueError(f"low={low} must be below high={high}")
    if whole:
        return IntDistribution(int(low), int(high), log=log_scale, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=log_scale, step=step)


def bound(meta: Mapping[str, Any], name: str) -> float | None:
    """An end of the schema's range; a little within it where the end itself is not allowed."""
    value = meta.get(name)
    if value is None or not math.isfinite(value):
        return None
    inner = INNER * (meta["high"] - meta["low"]) if meta["open"][name == "high"] else 0.0
    if not math.isfinite(inner):
        return None
    return value + inner if name == "low" else value - inner


def clashes(words: Sequence[str], distributions: Mapping[str, Any]) -> Iterator[Problem]:
    """Options that are both given and searched."""
    for word in words:
        if key_of(word) in distributions:
            what = f"is searched. Drop it, or take it out: {SPACE}{key_of(word)}=null"
            yield Problem(word, what)


def validation_problems(request: Request, config: DictConfig, index: ImageIndex) -> list[Problem]:
    """A search chooses, and test classes choose nothing."""
    if len(index.part("val")):
        return []
    what = (
        "chooses on validation classes, and there are none: test classes choose nothing.\n"
        f"Add {check.validating(config)}."
    )
    return [Problem(f"search={option_of(request)}", what)]


def check_corners(words: list[str], distributions: Mapping[str, "BaseDistribution"]) -> None:
    """Check the run at the low ends of all ranges, that at the high ends, and those of all choices.

    Raises ConfigurationError with what is wrong anywhere.
    """
    problems: list[Problem] = []
    plain = [word for word in words if not word.startswith("run_dir=")]
    tried = {key: ends(d) for key, d in distributions.items()}
    for number in range(max(len(values) for values in tried.values())):
        corner = {key: values[min(number, len(values) - 1)] for key, values in tried.items()}
        try:
            cli.checked([*plain, *trial_words(corner, distributions)])
        except ConfigurationError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise ConfigurationError(problems)


def ends(d: "BaseDistribution") -> list[Any]:
    """The values that say whether a range is legal: its ends, or all choices."""
    return list(d.choices) if hasattr(d, "choices") else [d.low, d.high]  # type: ignore[attr-defined]


def grid(d: "BaseDistribution") -> list[Any]:
    """All values of a range with steps.  Raises ConfigurationError: infinitely many."""
    if hasattr(d, "choices"):
        return list(d.choices)  # type: ignore[attr-defined]
    if d.step is None or d.log:  # type: ignore[attr-defined]
        what = "needs choices, or a step without log, for every option: a grid has finitely many points."
        raise ConfigurationError([Problem("search.sampler=grid", what)])
    count = int((d.high - d.low) / d.step + 1e-9) + 1  # type: ignore[attr-defined]
    return [d.low + number * d.step for number in range(count)]  # type: ignore[attr-defined]


def trial_words(
    parameters: Mapping[str, Any], distributions: Mapping[str, "BaseDistribution"]
) -> list[str]:
    """`option=value` of every parameter, a number with four digits where these lie within its range."""
    words = []
    for key in distributions:
        value, d = parameters[key], distributions[key]
        if isinstance(value, float) and not hasattr(d, "choices"):
            short = float(f"{value:.4g}")
            value = short if d.low <= short <= d.high else value  # type: ignore[attr-defined]
        words.append(f"{key}={shown(value)}")
    return words


def shown(value: Any) -> str:
    """A value as Hydra reads it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return compose.quoted(str(value)) if isinstance(value, str) else f"{value}".replace("e+", "e")


def same_search(
    directory: Path, request: Request, distributions: Mapping[str, "BaseDistribution"]
) -> None:
    """Write search.json, or find that what is searched there is what is searched now.

    Raises ConfigurationError: it is not. The number of trials may change.
    """
    plan = {
        "format": 1,
        "program": record.program(),
        "words": [w for w in request.typed if not w.startswith(("search.trials=", "run_dir="))],
        "space": {key: str(d) for key, d in distributions.items()},
    }
    path = directory / FILE
    if path.exists():
        before = record.read_json(path)
        for part in ("words", "space"):
            if part not in before:
                raise RunError(f"{path} is not as a search writes it: it has no {part}.")
            if before[part] != plan[part]:
                what = (
                    f"holds a search with other {part}:\n{describe(before[part])}\nhere\n"
                    f"{describe(plan[part])}\nChoose another directory: run_dir=NEW."
                )
                raise ConfigurationError([Problem(f"run_dir={directory}", what)])
    record.write_json(plan, path)


def describe(part: Any) -> str:
    """Words as typed, or a space line by line."""
    if isinstance(part, dict):
        return "\n".join(f"  {key}: {value}" for key, value in part.items())
    return f"  {shlex.join(part)}"


class Searching:
    """A search under way: asks Optuna for trials, hands them to a launcher, and tells it what came out."""

    def __init__(
        self,
        directory: Path,
        words: list[str],
        distributions: dict[str, "BaseDistribution"],
        options: DictConfig,
        metric: str,
        trials: int,
    ):
        self.directory, self.words, self.distributions = directory, words, distributions
        self.options, self.metric, self.trials = options, metric, trials
        self.processes = Processes()
        self.study = study_of(directory, options)

    def run(self, launch: Launch) -> int:
        """Go on until there are as many trials as wanted, then say what is best."""
        done = sum(trial.state.is_finished() for trial in self.study.trials)
        told = f", {done} of them done" if done else ""
        log.info(
            "%d trials in %s%s. The same command goes on with them; run_dir=NEW begins afresh.",
            *(self.trials, self.directory, told),
        )
        quiet = not isinstance(launch, Local)
        with stopping(self.processes):
            for job, code in launch(self.jobs(), self.processes, self.directory):
                if self.processes.stopped is None:
                    self.tell(job, code, quiet)
        if self.processes.stopped is not None:
            log.info("Stopped. The same command goes on.")
            return stopped_by(self.processes.stopped, saved=True)
        return self.conclude()

    def jobs(self) -> Iterator[Job]:
        """Trials that were begun and not ended, then new ones."""
        from optuna.trial import TrialState

        waiting = TrialState.WAITING
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            job = self.job(trial.number, trial.params)
            if (Path(job.directory) / RESULT).exists():  # it ended, and we were gone
                self.tell(job, 0, quiet=True)
            else:
                yield self.announced(job, ", resumed")
        while self.processes.stopped is None:
            trials = self.study.trials
            number = sum(trial.state != waiting for trial in trials)
            if number >= self.trials:
                return
            if self.options.sampler == "grid" and number == len(trials):
                self.study.enqueue_trial(self.point(number))
            self.study.sampler = self.sampler(number)
            trial = self.study.ask(self.distributions)
            yield self.announced(self.job(trial.number, trial.params), "")

    def announced(self, job: Job, how: str) -> Job:
        """Say that a trial begins."""
        words = trial_words(self.parameters(job), self.distributions)
        log.info("\nTrial %s of %d%s: %s", job.name, self.trials, how, " ".join(words))
        return job

    def parameters(self, job: Job) -> Mapping[str, Any]:
        """What Optuna chose for a job."""
        assert job.trial is not None
        return self.study.trials[job.trial["number"]].params

    def job(self, number: int, parameters: Mapping[str, Any]) -> Job:
        """The job of a trial."""
        words = [*self.words, *trial_words(parameters, self.distributions)]
        pruner = {
            name: self.options[name]
            for name in ("pruner", "prune_after_trials", "prune_after_epochs")
        }
        trial = {"directory": str(self.directory.absolute()), "number": number, **pruner}
        return make_job(f"{number + 1}", self.directory / f"trial{number + 1:04}", words, trial)

    def point(self, number: int) -> dict[str, Any]:
        """A point of the grid, the last option varying fastest."""
        axes = [grid(d) for d in self.distributions.values()]
        values = next(itertools.islice(itertools.product(*axes), number, None))
        return dict(zip(self.distributions, values, strict=True))

    def sampler(self, number: int) -> Any:
        """The sampler for the next trial, its seed a function of `search.seed` and the trial alone.

        A search that was stopped then goes on as one that was not.
        """
        import numpy as np
        from optuna import samplers

        seed = int(np.random.SeedSequence((self.options.seed, number)).generate_state(1)[0])
        if self.options.sampler != "tpe":
            return samplers.RandomSampler(seed=seed)
        startup = min(10, max(3, self.trials // 3))  # random ones first, to have something to model
        return samplers.TPESampler(seed=seed, n_startup_trials=startup)

    def tell(self, job: Job, code: int, quiet: bool) -> None:
        """Tell Optuna how a trial ended."""
        from optuna.trial import TrialState

        assert job.trial is not None
        number, path = job.trial["number"], Path(job.directory) / RESULT
        if not path.exists():
            say_how_it_ended(job, code, quiet)
            if code >= 0:  # by itself; one that was killed is taken up again by the same command
                self.study.tell(number, state=TrialState.FAIL)
            return
        result = record.read_json(path)
        if result["pruned"]:
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            self.study.tell(number, result["metrics"][self.metric])
        log.info("Trial %s: %s", job.name, outcome(self.study.trials[number], self.metric))

    def conclude(self) -> int:
        """Table, search.csv, plot, and the command that trains the best; returns the exit code."""
        from optuna.trial import TrialState

        trials = self.study.trials
        rows = [self.row(trial) for trial in trials]
        write_csv(rows, self.directory / TABLE)
        tables.search(rows, list(self.distributions), self.metric)
        if not self.study.get_trials(states=(TrialState.COMPLETE,)):
            raise RunError(f"no trial of {self.directory} came to its end; see their log.txt.")
        from dml import search_plot

        search_plot.draw(self.study, self.metric, self.directory / PLOT)
        best = self.study.best_trial
        kept = [word for word in self.words if not word.startswith("run_dir=")]
        words = [*kept, *trial_words(best.params, self.distributions)]
        log.info(
            "Best: trial %d, %s %.4f on the validation classes. Train it, and see the test classes, with\n"
            "  %s %s\n%s   %s",
            *(best.number + 1, self.metric, best.value, record.program(), shlex.join(words)),
            *(self.directory / TABLE, self.directory / PLOT),
        )
        if killed := self.study.get_trials(states=(TrialState.RUNNING,)):
            log.error(
                "%d of the trials were killed. The same command goes on with them.", len(killed)
            )
            return cli.FAILED
        return 0

    def row(self, trial: "FrozenTrial") -> dict[str, Any]:
        """A trial as a line of search.csv."""
        values = dict(w.split("=", 1) for w in trial_words(trial.params, self.distributions))
        state = "killed" if trial.state.name == "RUNNING" else trial.state.name.lower()
        found = {"trial": trial.number + 1, "state": state, **values}
        directory = self.directory / f"trial{trial.number + 1:04}"
        found["directory"] = directory.name
        if (directory / RESULT).exists():
            result = record.read_json(directory / RESULT)
            found["epochs"], found["minutes"] = result["epochs"], round(result["seconds"] / 60, 2)
            found |= {f"val/{name}": value for name, value in result["metrics"].items()}
        return found


def outcome(trial: "FrozenTrial", metric: str) -> str:
    """How a trial ended, in words."""
    if trial.value is not None and trial.state.name == "COMPLETE":
        return f"{metric} {trial.value:.4f}"
    last = max(trial.intermediate_values, default=0)
    return f"stopped after epoch {last}: below the median of those before it"


def study_of(directory: Path, options: DictConfig | Mapping[str, Any]) -> "Study":
    """The study in a directory's file, made where there is none."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.NopPruner()
    if options["pruner"] == "median":
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=options["prune_after_trials"],
            n_warmup_steps=options["prune_after_epochs"],
        )
    # Trials that report at the same time wait for each other, half a minute if need be.
    waiting = {"connect_args": {"timeout": 30}}
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{(directory / STUDY).absolute()}", engine_kwargs=waiting
    )
    return optuna.create_study(
        storage=storage,
        study_name="search",
        direction="maximize",
        pruner=pruner,
        load_if_exists=True,
    )


def run_trial(words: list[str], job: Job) -> int:
    """Train one trial, in its own process, and leave trial.json; returns the exit code."""
    import time

    path, begun = Path(job.directory) / RESULT, time.monotonic()
    if path.exists():  # by a process that outlived the search before
        return 0
    composed, index = cli.checked(words)
    from dml import run
    from dml.pruning import Pruning

    assert job.trial is not None
    study = study_of(Path(job.trial["directory"]), job.trial)
    pruning = Pruning(study, job.trial["number"], composed.config.selection.metric)
    try:
        with stoppable():
            metrics = run.validated(composed, index, [pruning])
    except Interrupted as stopped:
        saved = cli.last_checkpoint(composed) is not None
        return stopped_by(stopped.signal_number, saved)
    result = {
        "format": 1,
        "words": words,
        "metrics": metrics,
        "pruned": pruning.pruned,
        "epochs": pruning.epochs,
        "seconds": time.monotonic() - begun,
    }
    record.write_json(result, path)
    return 0
