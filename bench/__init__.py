"""Benchmarks: each prints figures that a reader can reproduce; none is a test."""
