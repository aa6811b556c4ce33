"""The process that orders, routes and counts every push of a host."""
