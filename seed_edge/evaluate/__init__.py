"""Evaluation of a bundle on held-out images: captions, names, drawings and round trips."""

from seed_edge import native

native.configure_hub_offline()
