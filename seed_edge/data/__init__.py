"""Training data: samples, shards, codes, captions and requests in English, dialogues. Needs the `train`
extra.
"""
