"""Every error a user can cause; the command line turns these, and only these, into one-line messages."""


class SeedEdgeError(Exception):
    """Something a user can put right. The message says what is wrong, where, and what to do next."""


class BundleError(SeedEdgeError):
    """A bundle is missing, damaged, or its parts do not belong together."""


class CheckpointError(SeedEdgeError):
    """A checkpoint lacks a tensor, or holds one of the wrong shape."""


class DataError(SeedEdgeError):
    """Training data cannot be read, or there is none."""


class DeviceError(SeedEdgeError):
    """The requested device cannot be used."""


class ImageError(SeedEdgeError):
    """An image file cannot be read, or is too large."""


class MemoryShortError(SeedEdgeError):
    """The work does not fit the memory that is free, or that was allowed."""


class ParityError(SeedEdgeError):
    """An exported graph does not give the numbers of the checkpoint it was made from."""


class PromptError(SeedEdgeError):
    """A prompt is empty, or too long for the language model."""


class CodesError(SeedEdgeError):
    """Codes do not form an image: wrong count, or outside the codebook."""
