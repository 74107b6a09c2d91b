"""`python train.py loss=circle` is the command `dml-train loss=circle`."""

from dml.cli import train

train()
