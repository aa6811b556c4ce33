"""What tests/e2e/test_sdk.py names as [client] handler."""

from typing import Any

from fastpush.applications import Application, RpcError


class Handler(Application):
    """Answers remote calls, and sends messages back."""

    def on_rpc(self, connection: Any, method: str, data: Any) -> Any:
        """`echo` returns the data, `whoami` the user, `refuse` and `fail` none; there is no other."""
        match method:
            case "echo":
                return data
            case "whoami":
                return {"user": connection.user}
            case "refuse":
                raise RpcError(1234, "refused, as it was told to")
            case "fail":
                raise RuntimeError("failed, as it was told to")
        return super().on_rpc(connection, method, data)

    def on_message(self, connection: Any, data: Any) -> None:
        connection.send(data.encode())
