"""The process that owns client sockets: accept, dispatch, WebSocket, timers."""
