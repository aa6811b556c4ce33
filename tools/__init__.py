"""What the project makes of itself; not installed."""
