"""Training of the embedded kind of image tokenizer, whose decoder gives pixels."""
