"""Training of image tokenizers and language models; needs the `train` extra."""

from seed_edge import native

native.configure_hub_offline()
