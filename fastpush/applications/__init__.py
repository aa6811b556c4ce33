"""What a WebSocket path does with its messages."""
