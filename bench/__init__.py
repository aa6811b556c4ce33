"""The side-by-side benchmark of fastpush and its peers: `python -m bench`, and bench/RESULTS.md; none of it is a test.

scenarios ──► run ──► measure ──► records ──► figures, verdicts ──► report, plots
                        │
                        └── servers: fastpush, and bench/peers
"""
