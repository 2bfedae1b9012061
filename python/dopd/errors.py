"""The Python half of the error table (see proto/dopd/v1/types.proto) and dopd's own exceptions."""

from __future__ import annotations


class DopdError(Exception):
    """Root of dopd's exceptions: an operating error with a message that says what, where and what to do."""


class ConfigError(DopdError):
    """A setting or a model cannot be used; the process ends with exit code 2."""


class ModelError(ConfigError):
    """A model folder or file is broken, incomplete or of an unknown architecture."""
