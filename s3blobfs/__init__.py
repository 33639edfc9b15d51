"""A filesystem over S3 in which every file is one whole object."""

__version__ = "0.1.0"
