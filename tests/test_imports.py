"""Imports point one way, and nothing on the way to a configuration error imports torch.

A typo must fail within a second; torch, timm and Lightning take several to import.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dml"

# Each layer may import from itself and from those before it.
LAYERS = [
    {"errors", "types", "log_file", "processes", "bundle_format", "run_directory"},
    {"data.index"},
    {"config.ranges"},
    {
        "losses",
        "miners",
        "memory",
        "evaluation",
        "data",
        "config.losses",
        "config.data",
        "config.extras",
        "config.post",
        "config.pins",
        "config.launch",
        "config.schema",
    },
    {"config.compose", "config.options", "config.saved", "record"},
    {"experiments", "launchers", "search_plot", "checkpoint_file", "curves"},
    {"embedding_files", "comparison"},
    {"encoder"},
    {"bundle"},
    {"distributed"},
    {
        "optim",
        "averaging",
        "chunks",
        "sam",
        "sync_batchnorm",
        "faults",
        "module",
        "callbacks",
        "checkpoints",
        "forensics",
        "pruning",
    },
    {"build"},
    {"config.check", "tables"},
    {"hardware", "measure", "post_options", "eval_request"},
    {"postprocessing", "compression_report"},
    {"report.gallery", "report.page_pictures"},
    {"index"},
    {"serve"},
    {"export"},
    {"loggers"},
    {"run"},
    {"report"},
    {
        "cli",
        "index.search_command",
        "job",
        "worker",
        "sweep",
        "search",
        "eval_command",
        "data_command",
        "data.doctor.command",
    },
]
TORCH_FREE = [
    "errors",
    "processes",
    "worker",
    "record",
    "build",
    "cli",
    "config",
    "data.index",
    "data.dealing",
    "data.samplers",
    "data.hierarchical",
    "data.sets.glyphs",
    "data.sets.digits",
    "data.sets.folder",
    "data.sets.csv_file",
    "data.sets.cub200",
    "data.sets.cars196",
    "data.sets.sop",
    "data.sets.inshop",
    "data.sets.vehicleid",
    "data.sets.inat2018",
    "data.sets.flowers102",
    "data.sets.ut_zappos50k",
    "data.sets.cifar",
    "data.sets.cifar10",
    "data.sets.cifar100",
    "data.sets.mnist",
    "data.sets.omniglot",
    "data.sets.written",
    "data.protocols",
    "data.sets.sources",
    "data.fetch.download",
    "data.fetch.archives",
    "data.fetch.manifest",
    "data.fetch.prepare",
    "data.progress",
    "data.fetch.summary",
    "data.fetch.pictures",
    "data.doctor.command",
    "data.doctor.duplicates",
    "data.doctor.findings",
    "data.doctor.examine",
    "data.doctor.page",
    "data.doctor.images",
    "data_command",
    "eval_request",
    "post_options",
    "evaluation.ranks",
    "evaluation.metrics",
    "evaluation.names",
    "evaluation.legacy",
    "evaluation.verification",
    "evaluation.clusters",
    "evaluation.diagnostics",
    "evaluation.result",
    "evaluation.statistics",
    "embedding_files",
    "comparison",
    "eval_request",
    "eval_command",
    "tables",
    "log_file",
    "run_directory",
    "experiments",
    "report.claims",
    "report.command",
    "report.plots",
    "report.records",
    "report.results",
    "report.write",
    "bundle_format",
    "export.command",
    "index.command",
    "index.search_command",
    "index.changing",
    "index.making",
    "index.judging",
    "index.inputs",
    "index.opening",
    "index.store",
    "index.servers",
    "index.writing",
    "index.faiss_index",
    "serve.options",
    "config.pins",
    "launchers",
    "job",
    "sweep",
    "search",
    "search_plot",
]
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "pytorch_lightning",
    "pytorch_metric_learning",
    "faiss",
    "wandb",
}


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        found[name.removesuffix(".__init__")] = path
    return found


def level(name: str) -> int:
    """The layer of a module, by its longest listed prefix."""
    best = (-1, "")
    for number, layer in enumerate(LAYERS):
        for entry in layer:
            if (name == entry or name.startswith(entry + ".")) and len(entry) > len(best[1]):
                best = (number, entry)
    return best[0]


def imported(path: Path, top_level_only: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_one_way(name):
    path = modules()[name]
    own = level(name)
    if name in ("__init__", "config"):
        return
    assert own >= 0, f"dml.{name} is in no layer: place it in LAYERS"
    for target in imported(path, top_level_only=False):
        if target.startswith("dml.") and target.removeprefix("dml.") in modules():
            other = target.removeprefix("dml.")
            if other in ("config", "data", "report"):
                continue
            assert level(other) <= own, f"dml.{name} imports dml.{other}, which is above it"


@pytest.mark.parametrize("name", TORCH_FREE)
def test_no_heavy_import_at_the_top_of_torch_free_modules(name):
    chosen = {n: p for n, p in modules().items() if n == name or n.startswith(name + ".")}
    assert chosen, f"dml.{name} does not exist"
    for module, path in chosen.items():
        heavy = {target.split(".")[0] for target in imported(path, top_level_only=True)} & HEAVY
        assert not heavy, f"dml.{module} imports {heavy}"


def test_checking_a_command_line_imports_no_torch():
    """The whole way from words to the list of problems, in a process of its own."""
    code = (
        "import sys; from dml.cli import checked; from dml.errors import ConfigurationError\n"
        "try: checked(['loss=circel', 'loss.margin=9'])\n"
        "except ConfigurationError: pass\n"
        "else: raise SystemExit('accepted')\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
