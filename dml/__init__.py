"""Deep metric learning: train image encoders for retrieval, evaluate them exactly, export them."""

__version__ = "0.1.0"
