"""Checks in load.py say what they found, as those in tests do."""

import pytest

pytest.register_assert_rewrite("tests.chaos.load")
