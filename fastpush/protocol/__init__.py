"""Wire formats and their rules: bytes in, bytes out; no I/O, no clock."""
