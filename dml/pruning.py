"""Stop trials of a search that do worse than those before them."""

import pytorch_lightning as pl
from optuna import Study, Trial
from pytorch_lightning.callbacks import Callback

from dml.errors import RunError


class Pruning(Callback):
    """Reports the validation metric of every epoch to a study, and stops where its pruner says so.

    study: with its pruner.  number: of the trial.  metric: name without `val/`; more is better.
    """

    def __init__(self, study: Study, number: int, metric: str):
        self.trial = Trial(study, study.trials[number]._trial_id)
        self.metric, self.pruned, self.epochs = metric, False, 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the epoch, once: a resumed trial may validate one again."""
        value, epoch = trainer.callback_metrics.get(f"val/{self.metric}"), trainer.current_epoch + 1
        if value is None:
            raise RunError(f"validation gave no {self.metric}, by which the search chooses.")
        self.epochs = epoch
        if epoch not in self.trial.study.trials[self.trial.number].intermediate_values:
            self.trial.report(float(value), epoch)
        if epoch < (trainer.max_epochs or 0) and self.trial.should_prune():
            self.pruned, trainer.should_stop = True, True
