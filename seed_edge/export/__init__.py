"""Checkpoint to bundle; needs the `export` extra."""

from seed_edge import native

native.configure_hub_offline()
