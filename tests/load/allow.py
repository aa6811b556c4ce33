"""A function of one's own for [push] auth."""

from collections.abc import Mapping


def everybody(headers: Mapping[str, str]) -> bool:
    """Let everybody push."""
    return True
