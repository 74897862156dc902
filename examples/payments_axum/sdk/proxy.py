"""A proxy that loses answers: python3 proxy.py UPSTREAM_PORT LOG

The first answer to a payment whose order contains "drop" is not sent, and of one whose order
contains "cut" only the first half is. The server has executed both by then. Each answer's status
and the order's name are a line of LOG. The port is printed.
"""

import asyncio
import re
import sys

upstream, log = int(sys.argv[1]), open(sys.argv[2], "a", buffering=1)
seen = set()


async def forward(reader, writer):
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?im)^content-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        # One request for each connection: its answer ends with it.
        head = re.sub(rb"(?im)^connection:.*\r\n", b"", head)
        head = head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        from_server, to_server = await asyncio.open_connection("127.0.0.1", upstream)
        to_server.write(head + body)
        answer = await from_server.read()
        to_server.close()

        order = re.search(rb"order(?:%5D|\])=([\w-]+)", body)
        order = order[1].decode() if order else "-"
        print(answer.split(b" ", 2)[1].decode(), order, file=log)
        first = order not in seen
        seen.add(order)
        if not (first and "drop" in order):
            writer.write(answer[: len(answer) // 2] if first and "cut" in order else answer)
            await writer.drain()
    except (asyncio.IncompleteReadError, OSError):
        pass  # a client that closed an idle connection
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
