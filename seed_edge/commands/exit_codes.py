"""Exit codes of the program."""

SOME_FAILED = 3
"""Some of several images failed."""
INTERRUPTED = 130
EXIT_CODES = (
    "0: success. 1: an error, printed as one line. 2: wrong usage; for doctor: something is broken. "
    "3: some of several images failed. 130: interrupted."
)
