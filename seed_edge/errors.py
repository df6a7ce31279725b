"""The exceptions of this package. The command line turns these, and only these, into one-line messages.

Each class is also the built-in exception that fits: `except FileNotFoundError` catches a missing image or
bundle, and `except ValueError` a value out of range.
"""


class SeedEdgeError(Exception):
    """Base class of all errors that a user can correct. The message states the problem, where it is, and what
    to do next.
    """


class BundleError(SeedEdgeError, ValueError):
    """A bundle is missing, damaged, or its files do not belong together."""


class CheckpointError(SeedEdgeError, ValueError):
    """A checkpoint lacks a tensor, or contains one of the wrong shape."""


class DataError(SeedEdgeError, ValueError):
    """Training data is missing or cannot be read."""


class DeviceError(SeedEdgeError, RuntimeError):
    """The requested device cannot be used."""


class ImageError(SeedEdgeError, ValueError):
    """An image cannot be read, or is too large."""


class MemoryShortError(SeedEdgeError, MemoryError):
    """The operation needs more memory than is free, or than `memory_limit` allows."""


class ParityError(SeedEdgeError):
    """An exported graph gives other numbers than the checkpoint it was made from."""


class PromptError(SeedEdgeError, ValueError):
    """A prompt is empty or too long for the language model, or an option of generation is out of range."""


class CodesError(SeedEdgeError, ValueError):
    """Codes do not form an image: wrong count, or outside the codebook."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """There is no bundle at this path or under this name, or one of its files is missing."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A checkpoint file does not exist."""


class CodesNotFoundError(CodesError, FileNotFoundError):
    """A file of codes does not exist."""


class DataNotFoundError(DataError, FileNotFoundError):
    """A data file does not exist."""


class ImageNotFoundError(ImageError, FileNotFoundError):
    """An image file does not exist."""


NOT_FOUND: dict[type[SeedEdgeError], type[SeedEdgeError]] = {
    BundleError: BundleNotFoundError,
    CheckpointError: CheckpointNotFoundError,
    CodesError: CodesNotFoundError,
    DataError: DataNotFoundError,
    ImageError: ImageNotFoundError,
}
"""The subclass of each error that is raised for a missing file; it is also a `FileNotFoundError`."""
