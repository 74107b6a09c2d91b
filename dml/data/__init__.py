"""Data: indexes of images, splits, samplers, preprocessing and loaders."""
