"""Training of image tokenizer and language model; needs the `train` extra."""

from seed_edge import native

native.import_quietly()
