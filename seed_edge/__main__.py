"""`python -m seed_edge`."""

from seed_edge.cli import main

main()
