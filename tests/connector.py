"""`connector.py PORT RATE`: connect RATE times a second and ask for /health, until standard input ends; print JSON.

attempts, refused (no connection), lost (connected, no answer), slowest_connect_ms, slowest_answer_ms
"""

import asyncio
import json
import sys
import time

GIVE_UP_SECONDS = 20
REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Connector:
    """Opens connections at a steady rate, whatever becomes of the earlier ones."""

    def __init__(self, port: int, rate: float) -> None:
        self.port, self.rate = port, rate
        self.attempts = self.refused = self.lost = 0
        self.connect_ms, self.answer_ms = [0.0], [0.0]
        self.errors: list[str] = []

    async def run(self) -> dict[str, object]:
        over = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        under_way: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while not over.done():
            task = asyncio.create_task(self.attempt())
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            due += 1 / self.rate
            await asyncio.sleep(max(0, due - time.monotonic()))
        await asyncio.gather(*under_way)
        return {
            "attempts": self.attempts,
            "refused": self.refused,
            "lost": self.lost,
            "slowest_connect_ms": round(max(self.connect_ms)),
            "slowest_answer_ms": round(max(self.answer_ms)),
            "errors": self.errors,
        }

    async def attempt(self) -> None:
        self.attempts += 1
        began = time.monotonic()
        try:
            async with asyncio.timeout(GIVE_UP_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError as error:
            self.refused += 1
            self.errors.append(repr(error))
            return
        self.connect_ms.append((time.monotonic() - began) * 1000)
        try:
            async with asyncio.timeout(GIVE_UP_SECONDS):
                writer.write(REQUEST)
                if not (await reader.read()).startswith(b"HTTP/1.1 200"):
                    raise ConnectionError("no answer")
            self.answer_ms.append((time.monotonic() - began) * 1000)
        except OSError as error:
            self.lost += 1
            self.errors.append(repr(error))
        finally:
            writer.close()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(Connector(int(sys.argv[1]), float(sys.argv[2])).run())))
