"""The words of `dml-eval` as a checked request: what to evaluate, on which images, what to write.

Torch-free: a wrong command line is reported within a second.
"""

import dataclasses
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from dml import build, bundle_format, embedding_files, post_options, record
from dml.config import check, compose, saved
from dml.data.index import SPLITS, ImageIndex
from dml.embedding_files import Embedded
from dml.errors import ConfigurationError, Problem, RunError
from dml.evaluation.names import parse

IMAGES = ("data", "split", "loader", "evaluation")
FILES = ("out", "embeddings", "per_query", "per_class")
POST = ("post", "compress")
# What is evaluated -> the options that go with it.
SOURCES = {
    "run": (*IMAGES, *POST, *FILES),
    "encoder": (*IMAGES, *POST, *FILES),
    "runs": (*IMAGES, *FILES),
    "compare": (*IMAGES, "resamples", "seed", "out"),
    "backbone": ("head", *IMAGES, *POST, *FILES),
    "experiment": ("backbone", "unpin", *IMAGES, *POST, *FILES),
    "embeddings_file": (
        *("labels", "similarity", "evaluation"),
        *("train_embeddings", *POST, *FILES),
    ),
}
PATHS = ("run", "encoder", "embeddings_file", "labels", "train_embeddings", *FILES)
LISTS = {"runs": "two or more", "compare": "two"}
CHOICES = {"split": (*SPLITS, "all"), "similarity": embedding_files.SIMILARITIES}


@dataclass(frozen=True)
class Subject:
    """An encoder and the images it is to embed.

    The encoder is that of a run, or of a bundle (a directory, or hf://owner/name); both None: the backbone
    of `config` as it comes.
    """

    run: Path | None
    config: DictConfig
    index: ImageIndex
    bundle: str | None = None


@dataclass
class Request:
    """A checked command line.  config: the options of the words alone; runs add their own data options."""

    source: str
    config: DictConfig
    subjects: list[Subject] = field(default_factory=list)
    embedded: Embedded | None = None

    @property
    def split(self) -> str:
        """The evaluated split."""
        return self.config.split

    @property
    def data(self) -> str:
        """Name of the data, for titles and files."""
        if self.embedded is not None:
            return Path(self.config.embeddings_file).stem
        return self.subjects[0].index.name

    def out(self) -> Path:
        """The directory of the record, made where it is not there."""
        if self.config.out is not None:
            directory = Path(self.config.out).expanduser()
        elif self.source == "run":
            directory = Path(self.config.run).expanduser()
        elif self.source == "embeddings_file":
            directory = Path(self.config.embeddings_file).expanduser().parent
        else:
            directory = Path("runs") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{self.data}_eval"
        directory.mkdir(parents=True, exist_ok=True)
        return directory


def checked(words: list[str]) -> Request:
    """Compose and check a command line.  Raises ConfigurationError with all that is wrong."""
    source, legal, problems = sorted_out(words)
    if source == "backbone" and not any(word.startswith("head=") for word in legal):
        legal.insert(0, "head=none")  # a timm model off the shelf: its pooled features
    composed, found = compose.compose_all([in_quotes(word) for word in legal], "eval")
    request = Request(source, composed.config)
    problems += found + option_problems(composed.config)
    runs, found = named_runs(request)
    problems += found
    if source == "embeddings_file":
        path = Path(str(composed.config.embeddings_file)).expanduser()
        request.embedded, found = read_file(path, request)
        problems += found
    elif source:
        for directory in [None] if source in ("backbone", "experiment", "encoder") else runs:
            subject, found = subject_of(directory, legal, source, problems)
            problems += found
            request.subjects += [subject] if subject else []
        if not problems:
            problems += data_problems(request)
    problems += post_problems(request)
    if problems:
        raise ConfigurationError(dict.fromkeys(problems))
    return request


def sorted_out(words: list[str]) -> tuple[str, list[str], list[Problem]]:
    """What is to be evaluated, the words that go with it, and what is wrong with the others."""
    known = list(dict.fromkeys([*SOURCES, *(o for options in SOURCES.values() for o in options)]))
    sources = list(dict.fromkeys(option(word) for word in words if option(word) in SOURCES))
    if "experiment" in sources:  # its backbone may be given as a file
        sources = [source for source in sources if source != "backbone"]
    source, legal, problems = sources[0] if len(sources) == 1 else "", [], []
    for word in words:
        if word.startswith("-"):
            problems.append(Problem(word, "is no flag. Options are written key=value; see --help."))
        elif option(word) not in known:
            guess = compose.nearest(option(word), known, "")
            problems.append(Problem(word, f"is no option of dml-eval. {guess}"))
        elif source and option(word) not in (source, *SOURCES[source]):
            goes = ", ".join(SOURCES[source])
            problems.append(Problem(word, f"does not go with {source}=... Options: {goes}."))
        else:
            legal.append(word)
    if not sources:
        what = "what is to be evaluated: which run? Add run=DIR, the directory of a finished run,\n"
        what += "or encoder=BUNDLE, backbone=NAME, embeddings_file=FILE, runs=[DIR,...], compare=[DIR,DIR]."
        problems.append(Problem("dml-eval", what))
    elif not source:
        what = (
            f"{' and '.join(f'{name}=...' for name in sources)} are different things to evaluate."
        )
        problems.append(Problem("dml-eval", f"{what} Keep one."))
    return source, legal, problems


def option(word: str) -> str:
    """`data` of `data.root=DIR`."""
    return word.lstrip("+~").split("=")[0].split(".")[0]


def in_quotes(word: str) -> str:
    """Paths hold `=` and commas, as those of a sweep do; Hydra reads such values in quotes only."""
    key, equals, value = word.partition("=")
    if not equals or set("'\"") & set(value):
        return word
    if key in PATHS and value:
        return compose.word(key, value)
    if key in LISTS and value.startswith("[") and value.endswith("]"):
        items = [compose.quoted(item.strip()) for item in value[1:-1].split(",") if item.strip()]
        return f"{key}=[{','.join(items)}]"
    return word


def option_problems(config: DictConfig) -> list[Problem]:
    """What is wrong with the values of dml-eval's own options, and with the names of metrics."""
    found = check.node_problems(config, "loader") + check.node_problems(config, "evaluation")
    for name, legal in CHOICES.items():
        if config[name] is not None and config[name] not in legal:
            what = f"must be one of {', '.join(legal)}."
            found.append(Problem(f"{name}={config[name]}", what))
    if config.resamples < 100:
        found.append(Problem(f"resamples={config.resamples}", "must be at least 100."))
    found += check.seed_problems(config) + check.metric_problems(config.evaluation.metrics)
    for name, kind, ending in (
        ("embeddings", "a NumPy archive", ".npz"),
        ("per_query", "a NumPy archive", ".npz"),
        ("per_class", "a table", ".csv"),
    ):
        value = config[name]
        if value is None:
            continue
        path = Path(value).expanduser()
        if path.suffix != ending:
            found.append(Problem(f"{name}={value}", f"is {kind}; end its name in {ending}."))
        elif not path.parent.is_dir():
            found.append(Problem(f"{name}={value}", f"there is no directory {path.parent}."))
    if config.out is not None and Path(config.out).expanduser().is_file():
        found.append(Problem(f"out={config.out}", "is a file. Choose a directory."))
    return found


def named_runs(request: Request) -> tuple[list[Path], list[Problem]]:
    """The directories of the finished runs that are asked for, and what is wrong with them."""
    source, config = request.source, request.config
    names = [config.run] if source == "run" else list(config[source]) if source in LISTS else []
    found = []
    if source in LISTS and (len(names) < 2 or (source == "compare" and len(names) > 2)):
        what = f"takes {LISTS[source]} directories: {source}=[DIR,DIR]."
        found.append(Problem(f"{source}=[{','.join(names)}]", what))
    directories = []
    for name in names:
        directory = Path(str(name)).expanduser()
        if (directory / record.FILE).is_file():
            directories.append(directory)
            continue
        what = f"holds no {record.FILE}: it is no finished run."
        if source in LISTS:
            what += f"\nA path with commas goes into quotes: {source}=\"['a,b','c']\"."
        found.append(Problem(f"{source}={name}", what))
    return directories, found


def subject_of(
    run: Path | None, words: list[str], source: str, problems: list[Problem]
) -> tuple[Subject | None, list[Problem]]:
    """An encoder and its images: a run's own data options, changed by the words."""
    kept = [] if run is None else own_words(run, words)
    if source == "compare":
        kept.append("evaluation.metrics=[recall@1,map@r]")
    composed, found = compose.compose_all([*kept, *map(in_quotes, words)], "eval")
    config = composed.config
    data_found = check.node_problems(config, "data")
    bundle = config.encoder if source == "encoder" else None
    if bundle is not None:
        found += bundle_problems(bundle)
    elif run is None:
        found += [p for group in ("backbone", "head") for p in check.node_problems(config, group)]
        if build.schema_of(config, "head").embeds and config.experiment is not None:
            what = f"trains an encoder. Train it: dml-train experiment={config.experiment} ..., and then\n"
            found.append(Problem(f"experiment={config.experiment}", f"{what}dml-eval run=DIR."))
        elif build.schema_of(config, "head").embeds:
            what = "has random weights here: a model off the shelf has none for it. Add head=none."
            found.append(Problem(check.words(composed, "head"), what))
        if not (config.backbone.pretrained or config.backbone.weights):
            what = "has random weights. Add backbone.pretrained=true, or a file: backbone.weights=FILE."
            found.append(Problem(check.words(composed, "backbone"), what))
    # An embedded set is drawn at first use, which takes seconds: with mistakes to report, not now.
    if data_found or (config.data.root is None and (found or problems)):
        return None, data_found + found
    try:
        index = build.index(config)
    except ConfigurationError as error:
        return None, error.problems + found
    everything = np.arange(len(index.labels))
    index = dataclasses.replace(index, splits={**index.splits, "all": everything})
    return Subject(run, config, index, bundle), found


def bundle_problems(name: str) -> list[Problem]:
    """Why a directory is no bundle of an encoder; one on a hub is looked at when it is downloaded."""
    if name.startswith(bundle_format.HUB):
        return []
    try:
        bundle_format.read(Path(name).expanduser())
    except RunError as error:
        return [Problem(f"encoder={name}", str(error))]
    return []


def own_words(run: Path, words: list[str]) -> list[str]:
    """The words of a run's command line that say what it was evaluated on, unless these say otherwise."""
    others = any(word.startswith("data=") for word in words)
    typed = {word.partition("=")[0] for word in words}
    kept = [
        word
        for word in map(str, record.read(run)["overrides"])
        if option(word) in ("data", "evaluation", "loader", "experiment")
        and not (others and option(word) in ("data", "experiment"))
        and word.partition("=")[0] not in typed
    ]
    for word in kept:
        if why := saved.word_problem(word):
            key = word.partition("=")[0]
            raise RunError(
                f"{run}/{record.FILE} says {word}, which {why}, and a file's word is not enough for that.\n"
                f"If it is yours, repeat it on this command line; else give another: {key}=..."
            )
    # What is evaluated now need not be what the experiment says; the run's own record keeps its claim.
    return [*kept, "unpin=true"] if any(option(word) == "experiment" for word in kept) else kept


def data_problems(request: Request) -> list[Problem]:
    """Nothing to evaluate, or runs on different images."""
    found, split = [], request.split
    for subject in request.subjects:
        if len(subject.index.part(split)) == 0:
            found.append(Problem(f"split={split}", "this data has no such images."))
    prints = [subject.index.fingerprint((split,)) for subject in request.subjects]
    for subject, fingerprint in zip(request.subjects, prints, strict=True):
        if fingerprint != prints[0]:
            what = (
                f"its {split} images ({subject.index.name}) are not those of "
                f"{request.subjects[0].run} ({request.subjects[0].index.name}): other files, classes or "
                "roles.\nNumbers on different images do not compare. Add data=... to evaluate all on "
                "the same."
            )
            found.append(Problem(f"{request.source}={subject.run}", what))
    if request.source == "compare":
        if request.subjects[0].config.evaluation.average == "macro":
            what = "compare pairs queries, and gives intervals over queries and over classes."
            found.append(Problem("evaluation.average=macro", what))
        for name in request.subjects[0].config.evaluation.metrics:
            if parse(name).family != "ranks":
                what = f"{name} has no value for each query, and compare pairs queries."
                found.append(Problem("evaluation.metrics", what))
    return found


def post_problems(request: Request) -> list[Problem]:
    """What is wrong with the steps after the encoder."""
    embedded, run, bundle, apart = request.embedded, None, None, True  # until the data are known
    if embedded is not None:
        apart = embedded.is_query is not None
    elif request.subjects:
        run, bundle = request.subjects[0].run, request.subjects[0].bundle
        apart = request.subjects[0].index.part(request.split).is_query is not None
    found = post_options.problems(request.config, run, bundle, embedded, apart)
    file = request.config.train_embeddings
    if file is not None and Path(file).suffix not in (".npz", ".parquet"):
        found.append(Problem(f"train_embeddings={file}", "must end in .npz or .parquet."))
    elif file is not None and not Path(file).expanduser().is_file():
        found.append(Problem(f"train_embeddings={file}", "is no file."))
    return found


def read_file(path: Path, request: Request) -> tuple[Embedded | None, list[Problem]]:
    """The embeddings of a file, compared as the words say."""
    config, where = request.config, f"embeddings_file={path}"
    labels = None if config.labels is None else Path(config.labels).expanduser()
    found = []
    if path.suffix not in embedding_files.KINDS:
        found.append(Problem(where, f"must end in {', '.join(embedding_files.KINDS)}."))
    elif not path.is_file():
        found.append(Problem(where, "is no file."))
    if labels is not None and path.suffix != ".npy":
        found.append(Problem(f"labels={labels}", f"a {path.suffix} file has its own labels."))
    elif labels is not None and (labels.suffix not in (".npy", ".csv") or not labels.is_file()):
        found.append(Problem(f"labels={labels}", "is no .npy or .csv file."))
    if found:
        return None, found
    try:
        embedded = embedding_files.load(path, labels)
    except ConfigurationError as error:
        return None, error.problems
    if config.similarity is not None:
        embedded = dataclasses.replace(embedded, similarity=config.similarity)
    return embedded, []
