"""Load with a ledger: clients that come back, publishers that keep on, and every message of theirs accounted for.

`python -m tests.load --help`; tests run it as a process of its own (driver.py), so that its CPU is not theirs.
"""
