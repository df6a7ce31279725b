"""What the program's exit codes mean."""

SOME_FAILED = 3
"""Some of many images could not be captioned."""
INTERRUPTED = 130
EXIT_CODES = (
    "0: done. 1: something the user can put right, told in one line. 2: wrong usage; of doctor: something is broken. "
    "3: some of many images failed, the others are done. 130: interrupted."
)
