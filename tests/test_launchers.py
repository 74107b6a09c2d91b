"""Launchers: every job runs once in a process of its own, and its end is told, however it ends.

The jobs are scripts of a few lines; what jobs of a sweep do is in test_sweep.py.
"""

import importlib.util
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from dml import launchers
from dml.config import check, compose
from dml.launchers import STOPPED, Job, Joblib, Local, Processes, Ray, Remote, Submitit


@dataclass(frozen=True)
class Script(Job):
    """A job that runs a few lines of Python; `words` holds them."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.words[0]]


def script(tmp_path: Path, name: str, code: str) -> Script:
    return Script(name, str(tmp_path / name), [code], "train.py", str(tmp_path))


def writing(tmp_path: Path, name: str) -> Script:
    """A job that leaves the file `<name>.txt`, and appends, so that a second run would show."""
    return script(tmp_path, name, f"open({str(tmp_path / name) + '.txt'!r}, 'a').write('once')")


def test_one_after_another(tmp_path):
    jobs = [writing(tmp_path, name) for name in "abc"]
    jobs.insert(1, script(tmp_path, "failing", "raise SystemExit(3)"))
    jobs.insert(2, script(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"))
    ended = [(job.name, code) for job, code in Local()(jobs, Processes(), tmp_path)]
    assert ended == [("a", 0), ("failing", 3), ("killed", -9), ("b", 0), ("c", 0)]
    assert [(tmp_path / f"{name}.txt").read_text() for name in "abc"] == ["once"] * 3
    assert launchers.exit_text(-9) == "killed by SIGKILL, perhaps for want of memory"


def test_the_next_job_is_asked_for_when_it_is_needed(tmp_path):
    """A search chooses a trial knowing those before it."""
    asked = []

    def jobs():
        for name in "ab":
            asked.append(name)
            yield writing(tmp_path, name)

    ended = Local()(jobs(), Processes(), tmp_path)
    next(ended)
    assert asked == ["a"]


MEETING = (
    "import pathlib, sys, time\n"
    "here = pathlib.Path({folder!r}); (here / {own!r}).touch()\n"
    "for _ in range(6000):\n"
    "    if (here / {other!r}).exists(): sys.exit(0)\n"
    "    time.sleep(0.05)\n"
    "sys.exit(1)"
)


def test_joblib_runs_jobs_at_the_same_time(tmp_path):
    """Each of two jobs waits for the other: one after another they would fail."""
    jobs = [
        script(
            tmp_path, own, MEETING.format(folder=str(tmp_path), own=own + "_", other=other + "_")
        )
        for own, other in ("ab", "ba")
    ]
    ended = {job.name: code for job, code in Joblib(2)(jobs, Processes(), tmp_path)}
    assert ended == {"a": 0, "b": 0}


TELL = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ['OMP_NUM_THREADS'])"


def test_joblib_gives_each_job_a_device_of_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    jobs = [script(tmp_path, name, TELL) for name in "abc"]
    launcher = Joblib(8, [4, 7])
    assert launcher.at_once() == 2
    assert all(code == 0 for _, code in launcher(jobs, Processes(), tmp_path))
    told = [(tmp_path / name / launchers.OUTPUT).read_text().split() for name in "abc"]
    assert {device for device, _ in told} <= {"4", "7"}
    assert {int(threads) for _, threads in told} == {max(1, (os.cpu_count() or 1) // 2)}


SLEEPS = (
    "import pathlib, signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    "pathlib.Path({ready!r}).touch(); time.sleep(600)"
)


def when_there(path: Path, action) -> threading.Thread:
    """Do something in another thread once a file is there."""

    def wait():
        for _ in range(6000):
            if path.exists():
                break
            time.sleep(0.05)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("launcher", [Local(), Joblib(2)])
def test_stopping_ends_the_running_and_begins_no_other(launcher, tmp_path):
    ready = tmp_path / "ready"
    jobs = [script(tmp_path, "long", SLEEPS.format(ready=str(ready)))]
    processes = Processes()
    if isinstance(launcher, Joblib):
        jobs.append(script(tmp_path, "long2", SLEEPS.format(ready=str(tmp_path / "ready2"))))
        ready = tmp_path / "ready2"
    jobs += [writing(tmp_path, name) for name in "ab"]
    thread = when_there(ready, lambda: processes.stop(signal.SIGINT))
    ended = {job.name: code for job, code in launcher(jobs, processes, tmp_path)}
    thread.join()
    assert ended["long"] in (143, -signal.SIGTERM)  # not 0, after ten minutes
    assert ended["a"] == ended["b"] == STOPPED
    assert not (tmp_path / "a.txt").exists()


def test_every_file_builds_its_launcher():
    """Options of the YAML, the schema and the constructor are the same."""
    from dml import build

    for name in compose.options_of("launcher"):
        composed, problems = compose.compose_all([f"launcher={name}"], "sweep")
        assert not problems
        assert not check.node_problems(composed.config, "launcher")
        built = build.build(composed.config.launcher)
        given = {k: v for k, v in composed.config.launcher.items() if k != "_target_"}
        assert vars(built) == given


@pytest.fixture
def by_value():
    """Let submitit and ray pickle this module's classes: their workers cannot import it."""
    import cloudpickle

    picklers = [cloudpickle]
    if importlib.util.find_spec("ray") is not None:
        import ray

        picklers.append(ray.cloudpickle)
    for pickler in picklers:
        pickler.register_pickle_by_value(sys.modules[__name__])
    yield
    for pickler in picklers:
        pickler.unregister_pickle_by_value(sys.modules[__name__])


def slurm_free(**more) -> Submitit:
    return Submitit(cluster="local", timeout_min=2, max_num_timeout=3, gpus_per_node=0, **more)


@pytest.mark.slow
def test_submitit_runs_jobs_and_tells_how_they_ended(tmp_path, by_value):
    jobs = [writing(tmp_path, name) for name in "ab"]
    jobs.append(script(tmp_path, "failing", "raise SystemExit(3)"))
    ended = {job.name: code for job, code in slurm_free(n_jobs=2)(jobs, Processes(), tmp_path)}
    assert ended == {"a": 0, "b": 0, "failing": 3}
    assert (tmp_path / "a.txt").read_text() == "once"


RESUMES = (
    "import pathlib, signal, sys, time\n"
    "saved = pathlib.Path({saved!r})\n"
    "if saved.exists(): sys.exit(0)\n"
    "def save(*_): saved.write_text('saved'); sys.exit(143)\n"
    "signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGUSR2, signal.SIG_IGN)\n"
    "pathlib.Path({ready!r}).touch(); time.sleep(600); sys.exit(1)"
)


@pytest.mark.slow
def test_a_preempted_job_of_submitit_saves_and_is_run_again(tmp_path, by_value):
    """submitit's own signal, as Slurm sends it when the time is up or another job needs the node."""
    saved, ready = tmp_path / "saved", tmp_path / "ready"
    job = script(tmp_path, "job", RESUMES.format(saved=str(saved), ready=str(ready)))
    handle = slurm_free().executor(tmp_path).submit(Remote(), job)

    def preempt():
        controller = handle.job_id  # for this machine's "cluster" the process that starts the task
        tasks = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
        os.kill(int(tasks[0]), signal.SIGUSR2)

    when_there(ready, preempt).join()
    assert handle.result() == 0
    assert saved.read_text() == "saved"


@pytest.mark.slow
def test_a_failing_worker_of_submitit_is_a_failed_job(tmp_path, by_value):
    """Out of memory in the worker itself, a node that dies: there is no result to unpickle."""
    job = script(tmp_path, "job", "import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    ((_, code),) = slurm_free()([job], Processes(), tmp_path)
    assert code == 1
    assert (tmp_path / "job" / launchers.OUTPUT).read_text()


FAKE_SBATCH = """#!/usr/bin/env python3
import os, pathlib, subprocess, sys
folder = pathlib.Path({folder!r})
number = str(100 + len(list(folder.glob("sbatch_*"))))
text = pathlib.Path(sys.argv[1]).read_text()
(folder / ("sbatch_" + number)).write_text(text)
env = os.environ | {{"SLURM_JOB_ID": number, "SLURM_JOBID": number, "SLURM_NTASKS": "1",
    "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_JOB_NODELIST": "here"}}
subprocess.Popen(["bash", sys.argv[1]], env=env, start_new_session=True,
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job", number)
"""
FAKE_SRUN = """#!/usr/bin/env python3
import os, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    words.pop(0) if "=" in words[0] or words[0] == "--unbuffered" else words.__delitem__(slice(0, 2))
os.execvp(words[0], words)
"""
FAKE_SACCT = """#!/usr/bin/env python3
import pathlib, sys
print("JobID|State|NodeList")
for sent in pathlib.Path({folder!r}).glob("sbatch_*"):
    number = sent.name.split("_")[1]
    done = list(pathlib.Path({folder!r}).glob("sweep/submitit/" + number + "_*result.pkl"))
    print(number + "|" + ("COMPLETED" if done else "RUNNING") + "|here")
"""


@pytest.mark.slow
def test_slurm_is_given_the_options_and_no_job_twice(tmp_path, by_value, monkeypatch):
    """sbatch, srun and sacct are scripts here: what is sent to Slurm is as submitit writes it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("sbatch", FAKE_SBATCH), ("srun", FAKE_SRUN), ("sacct", FAKE_SACCT)):
        (tools / name).write_text(text.format(folder=str(tmp_path)) if "{folder" in text else text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    launcher = Submitit(
        *("slurm", 30, 2), n_jobs=None, gpus_per_node=1, mem_gb=8, partition="gpu", qos="low"
    )
    folder = tmp_path / "sweep"
    job = writing(tmp_path, "a")
    ((_, code),) = launcher([job], Processes(), folder)
    assert code == 0
    assert (tmp_path / "a.txt").read_text() == "once"
    sent = (tmp_path / "sbatch_100").read_text()
    for option in ("--partition=gpu", "--qos=low", "--mem=8GB", "--time=30", "--signal=USR2@"):
        assert option in sent
    # One that is in the queue already, from a sweep that was killed, is waited for.
    running = script(tmp_path, "b", "import time; time.sleep(3)")
    submitted = launchers.Submitted(folder / "submitit" / "jobs.json")
    handle = launcher.executor(folder).submit(Remote(), running)
    submitted.remember(running, handle.job_id)
    ((_, code),) = launcher([running], Processes(), folder)
    assert code == 0
    assert len(list(tmp_path.glob("sbatch_*"))) == 2


@pytest.mark.slow
def test_ray_runs_jobs_and_tells_how_they_ended(tmp_path, by_value):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'dml[ray]'")
    jobs = [writing(tmp_path, name) for name in "ab"]
    jobs.append(script(tmp_path, "failing", "raise SystemExit(3)"))
    jobs.append(script(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"))
    launcher = Ray(address=None, n_jobs=2, cpus_per_job=1, gpus_per_job=0)
    ended = {job.name: code for job, code in launcher(jobs, Processes(), tmp_path)}
    assert ended == {"a": 0, "b": 0, "failing": 3, "killed": -9}
    assert (tmp_path / "a.txt").read_text() == "once"


@pytest.mark.slow
def test_stopping_ends_the_jobs_of_ray(tmp_path, by_value):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'dml[ray]'")
    ready, processes = tmp_path / "ready", Processes()
    jobs = [script(tmp_path, "long", SLEEPS.format(ready=str(ready))), writing(tmp_path, "a")]
    thread = when_there(ready, lambda: processes.stop(signal.SIGINT))
    launcher = Ray(address=None, n_jobs=1, cpus_per_job=1, gpus_per_job=0)
    ended = {job.name: code for job, code in launcher(jobs, processes, tmp_path)}
    thread.join()
    assert ended == {"long": STOPPED}
    assert not (tmp_path / "a.txt").exists()
