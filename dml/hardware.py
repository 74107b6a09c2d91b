"""What only the machine can say about a configuration, asked before anything is written."""

import torch
from omegaconf import DictConfig

from dml.config.check import half_precision_problem
from dml.errors import ConfigurationError, Problem


def check_hardware(config: DictConfig) -> None:
    """Raise ConfigurationError for an accelerator, a precision or a compiler that is not there."""
    trainer, found = config.trainer, []
    available = {
        "cpu": True,
        "auto": True,
        "gpu": torch.accelerator.is_available(),
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available[trainer.accelerator]:
        what = "this machine has none that PyTorch can use. Add trainer.accelerator=cpu."
        found.append(Problem(f"trainer.accelerator={trainer.accelerator}", what))
    elif trainer.precision == "16-mixed" and not available["gpu"]:
        found.append(half_precision_problem())
    elif trainer.compile:
        device = torch.accelerator.current_accelerator() if trainer.accelerator != "cpu" else None
        found += compiler_problems(device or torch.device("cpu"))
    if found:
        raise ConfigurationError(found)


def compiler_problems(device: torch.device) -> list[Problem]:
    """Whether torch.compile works here, tried on a few numbers."""
    try:
        torch.compile(lambda x: x.relu() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # the compiler's parts fail each in their own way
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
        what = f"torch.compile does not work here ({reason}).\nInstall a C++ compiler, or drop it."
        return [Problem("trainer.compile=true", what)]
    return []
