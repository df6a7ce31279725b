"""Training data: samples, shards, codes, English captions and requests, dialogues; needs the `train`
extra.
"""
