"""Types and ranges of the groups that say how several runs are made: launcher and search.  Torch-free."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore

from dml.config.ranges import MISSING, Checked, choice, count, number
from dml.errors import Problem


@dataclass
class Launcher(Checked):
    """Who starts the processes of the jobs.  package: what it needs.  extra: of ours, that brings it."""

    _target_: str = MISSING

    package: ClassVar[str | None] = None
    extra: ClassVar[str | None] = None


@dataclass
class Joblib(Launcher):
    """Several processes at a time on this machine."""

    n_jobs: int = MISSING  # -1: as many as there are cores
    devices: list[int] = field(default_factory=list)  # GPUs, each for one job at a time

    package: ClassVar[str | None] = "joblib"
    extra: ClassVar[str | None] = "joblib"

    def problems(self, prefix: str) -> list[Problem]:
        """Numbers of jobs that mean something, and devices named once."""
        found = super().problems(prefix)
        if self.n_jobs == 0 or self.n_jobs < -1:
            what = "must be 1 or more, or -1 for as many as there are cores."
            found.append(Problem(f"{prefix}.n_jobs={self.n_jobs}", what))
        if len(set(self.devices)) != len(self.devices):
            found.append(Problem(f"{prefix}.devices={self.devices}", "names a device twice."))
        return found


@dataclass
class Submitit(Launcher):
    """A Slurm cluster through submitit; its `local` and `debug` clusters are this machine."""

    cluster: str = choice("slurm", "local", "debug")
    n_jobs: int | None = count(1)  # in the queue at a time; null: all
    timeout_min: int = count(1)
    max_num_timeout: int = count(0)  # how often a job that ran out of time is queued again
    cpus_per_task: int | None = count(1)
    gpus_per_node: int | None = count(0)
    mem_gb: float | None = number(0, open_low=True)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    additional: dict[str, Any] = field(default_factory=dict)  # further options of sbatch

    package: ClassVar[str | None] = "submitit"
    extra: ClassVar[str | None] = "submitit"

    slurm_only: ClassVar[tuple[str, ...]] = ("partition", "account", "qos", "constraint")

    def problems(self, prefix: str) -> list[Problem]:
        """Ranges, and no option of Slurm for another cluster, which would not heed it."""
        found = super().problems(prefix)
        given = [name for name in self.slurm_only if getattr(self, name) is not None]
        given += ["additional"] if self.additional else []
        if self.cluster != "slurm":
            for name in given:
                where = f"{prefix}.{name}={getattr(self, name)}"
                found.append(Problem(where, f"is for {prefix}.cluster=slurm."))
        return found


@dataclass
class Ray(Launcher):
    """A Ray cluster; without an address one on this machine for as long as the sweep runs."""

    address: str | None = None
    n_jobs: int | None = count(1)  # at a time; null: as many as its cores and GPUs allow
    cpus_per_job: int = count(1)
    gpus_per_job: float = number(0)

    package: ClassVar[str | None] = "ray"
    extra: ClassVar[str | None] = "ray"


@dataclass
class Search(Checked):
    """What is varied, how often and by which rule; the measure is `selection.metric` on validation classes.

    space: option -> {low, high, log, step} or {choices}; what is left out comes from the option's own
    range.  options: what the search rests upon, such as {loss: circle}.
    """

    trials: int = count(1)
    sampler: str = choice("tpe", "random", "grid")
    pruner: str = choice("median", "none")
    prune_after_trials: int = count(0)  # so many are trained to their end first
    prune_after_epochs: int = count(0)  # no trial is stopped before the end of this one
    seed: int = count(0, 2**32 - 1)  # of the sampler
    space: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    package: ClassVar[str] = "optuna"
    extra: ClassVar[str] = "search"


@dataclass
class Sweep:
    """configs/sweep.yaml: everything but the runs' own options."""

    launcher: Any = MISSING
    search: Any = MISSING


def register(store: ConfigStore) -> None:
    """Tell Hydra the schemas, under ``schema/<group>/<name>``."""
    store.store(group="schema", name="sweep", node=Sweep)
    store.store(group="schema/launcher", name="local", node=Launcher)
    store.store(group="schema/launcher", name="joblib", node=Joblib)
    store.store(group="schema/launcher", name="submitit", node=Submitit)
    store.store(group="schema/launcher", name="ray", node=Ray)
    store.store(group="schema/search", name="search", node=Search)
