"""Every error this package raises on purpose, in one tree.

    GenerativeAdapterError
    ├── ConfigError              a setting is unknown, missing or out of range (also a ValueError)
    ├── DataError                a record or document can't be used; names file and line (also a ValueError)
    │   └── EmptyContextError    a context holds no text
    ├── BaseModelError           the base model can't be found, read or adapted
    │   └── UnsupportedArchitectureError   its blocks or target layers can't be found
    ├── CheckpointError          a generator, memory or training checkpoint can't be read
    │   └── FingerprintMismatchError       it belongs to another base model or another generator
    ├── AdapterError             adapters don't fit the model or the batch they are applied to
    ├── TrainingError            training can't go on (non-finite loss, nothing to supervise)
    └── MissingDependencyError   an optional package is needed; the message is its install command (also an ImportError)

A message says what was given, what was expected, and what to do. Leaves out: errors of torch, transformers and the
operating system, which pass through unless this package can say more than they do.
"""


class GenerativeAdapterError(Exception):
    """Base class of every error this package raises on purpose."""


class ConfigError(GenerativeAdapterError, ValueError):
    """A setting is unknown, missing or out of range."""


class DataError(GenerativeAdapterError, ValueError):
    """A record or document can't be used; the message names the file and, where there is one, the line."""


class EmptyContextError(DataError):
    """A context holds no text, so no adapter can be made from it."""


class BaseModelError(GenerativeAdapterError):
    """The base model can't be found, read or adapted."""


class UnsupportedArchitectureError(BaseModelError):
    """The Transformer blocks or target layers of a model can't be found; the message names what was looked for."""


class CheckpointError(GenerativeAdapterError):
    """A generator, memory or training checkpoint can't be read."""


class FingerprintMismatchError(CheckpointError):
    """A memory or generator belongs to another base model or another generator."""


class AdapterError(GenerativeAdapterError, ValueError):
    """Adapters don't fit the model or the batch they are applied to."""


class TrainingError(GenerativeAdapterError, RuntimeError):
    """Training can't go on."""


class MissingDependencyError(GenerativeAdapterError, ImportError):
    """An optional package is needed; the message carries its install command."""
