"""A product installs `dml` alone: using an encoder must not need what training needs.

The packages are made impossible to import, as they are where they are not installed.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from bundles import tiny_bundle

ROOT = Path(__file__).resolve().parents[1]
TRAINING = (
    *("pytorch_lightning", "lightning", "pytorch_metric_learning", "hydra", "omegaconf", "wandb"),
    *("faiss", "sklearn", "scipy", "matplotlib", "rich", "imagehash", "platformdirs", "onnx"),
    *("onnxruntime", "fastapi"),
)
# None: "import" raises ModuleNotFoundError, and "find_spec" finds nothing.
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({TRAINING!r}))\n"


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_block_blocks():
    """Else the others could not fail."""
    code = "try: import omegaconf\nexcept ModuleNotFoundError: print('missing')"
    assert python(code) == "missing"


def test_importing_dml_imports_next_to_nothing():
    """Neither torch nor numpy: a command line that imports `dml` answers at once."""
    code = (
        "before = set(sys.modules); import dml; dir(dml)\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    assert python(code) == "['dml']"


def test_an_encoder_loads_and_embeds_without_the_training_packages(tmp_path):
    bundle = tiny_bundle(tmp_path / "encoder")
    code = (
        "import dml, numpy as np\n"
        f"encoder = dml.load_encoder({str(bundle)!r})\n"
        "print(tuple(encoder([np.zeros((70, 90, 3), np.uint8)]).shape), dml.push_to_hub.__name__)\n"
        f"assert not any(sys.modules.get(name) for name in {TRAINING!r})"
    )
    assert python(code) == "(1, 16) push_to_hub"


def test_unknown_names_are_attribute_errors():
    import dml

    with pytest.raises(AttributeError, match="has no attribute 'load_encoders'"):
        dml.load_encoders  # noqa: B018
