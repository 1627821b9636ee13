"""Errors that a user can cause: each message is one sentence saying what was wrong and what to do."""


class TTOMError(ValueError):
    """Base of every error caused by input, settings or files."""
