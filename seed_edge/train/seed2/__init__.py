"""Training of SEED-2, in its two stages."""
