"""`python -m fastpush` and the `fastpush` command."""

from fastpush.cli import main

if __name__ == "__main__":
    main()
