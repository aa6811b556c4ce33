"""The control bus: length-prefixed binary frames over a Unix socket, between workers and broker."""
