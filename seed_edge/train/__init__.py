"""Training of image tokenizer and language model; needs the `train` extra."""
