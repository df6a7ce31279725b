"""How good a bundle is: captions, names, drawings and round trips, measured on pictures kept for validation."""

from seed_edge import native

native.import_quietly()
