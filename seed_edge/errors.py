"""The exceptions of this package. The command line prints them as one-line messages.

Each class is also a subclass of the matching built-in exception: `except FileNotFoundError` catches a missing
image or bundle, and `except ValueError` a value out of range.
"""


class SeedEdgeError(Exception):
    """Base class of all errors that a user can correct. The message states what is wrong, where, and what to
    do next.
    """


class BundleError(SeedEdgeError, ValueError):
    """A bundle is missing, damaged, or its files do not belong together."""


class CheckpointError(SeedEdgeError, ValueError):
    """A checkpoint is missing or damaged, lacks a tensor, or contains one of the wrong shape."""


class DataError(SeedEdgeError, ValueError):
    """Training data is missing or cannot be read."""


class DeviceError(SeedEdgeError, RuntimeError):
    """The requested device cannot be used."""


class ImageError(SeedEdgeError, ValueError):
    """An image cannot be read, or is too large."""


class MemoryShortError(SeedEdgeError, MemoryError):
    """An operation needs more memory than is free, or than `memory_limit` allows."""


class ParityError(SeedEdgeError):
    """The outputs of an exported graph differ from those of its checkpoint."""


class PromptError(SeedEdgeError, ValueError):
    """A prompt is empty or too long for the language model, or an option of generation is out of range."""


class CodesError(SeedEdgeError, ValueError):
    """Codes do not form an image: their number is wrong, or one is outside the codebook."""


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
