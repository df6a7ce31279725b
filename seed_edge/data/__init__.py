"""Reading of training data: samples, shards, codes, sentences; needs the `train` extra."""
