"""What is known and owed: routes and queues; no I/O, time is an argument."""
