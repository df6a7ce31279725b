"""PyTorch models and their checkpoints; needs the `export` or `train` extra."""

from seed_edge import native

native.configure_hub_offline()
