"""How good captions and images are, in numbers; used by evaluation and by training."""
