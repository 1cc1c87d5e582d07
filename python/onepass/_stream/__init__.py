"""Steps through a file, for what does not fit into memory."""

from onepass._stream.stream import Stream

__all__ = ["Stream"]
