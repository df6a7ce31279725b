"""Training of image tokenizers that decode to pixels, such as that of the embedded model."""
