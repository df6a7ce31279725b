"""Metrics of captions and images, used by evaluation and training."""
