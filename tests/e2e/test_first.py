"""The main job: register on one worker, push to another."""

from websockets.sync.client import connect

from tests.server import Server


def test_push_reaches_a_connection_on_another_worker(server: Server) -> None:
    """S0-13, S0-25, S0-29: whichever worker takes the push, every connection of the user has the message, as it is."""
    with (
        connect(server.ws_url("token=jack&event=topic1")) as one,
        connect(server.ws_url("token=jack&event=topic1")) as two,
    ):
        for number in range(20):
            assert server.push("jack", "topic1", f"hello {number}") == {"status": 200, "sent": 2}
            assert one.recv(timeout=20) == two.recv(timeout=20) == f"hello {number}"
