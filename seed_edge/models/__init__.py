"""The PyTorch models; needs the `export` or `train` extra."""
