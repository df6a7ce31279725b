"""The PyTorch models; needs the `export` or `train` extra."""

from seed_edge import native

native.import_quietly()
