"""Checkpoint to bundle; needs the `export` extra."""
