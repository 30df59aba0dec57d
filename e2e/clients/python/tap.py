"""A wire-tap: passes bytes between clients and the gateway unchanged and keeps a copy of both directions.

    tap.py --to http://127.0.0.1:PORT/api/v1 --keep FOLDER

prints its own base address and runs until it is ended. Each connection becomes two files, N.sent and N.received, which
check_answers.py reads afterwards. It never changes, delays or repairs what passes.
"""

import argparse
import asyncio
import contextlib
import itertools
import pathlib
import signal
from urllib.parse import urlsplit


async def pass_on(reader, writer, copy):
    try:
        while data := await reader.read(65536):
            copy.write(data)
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        # Half-close: the other direction may still have something to say.
        with contextlib.suppress(OSError, RuntimeError):
            if writer.can_write_eof():
                writer.write_eof()


async def serve(base, keep):
    numbers = itertools.count()

    async def connection(reader, writer):
        name = keep / f"{next(numbers):05}"
        try:
            to_reader, to_writer = await asyncio.open_connection(base.hostname, base.port)
        except OSError:
            writer.close()
            return
        with open(f"{name}.sent", "wb") as sent, open(f"{name}.received", "wb") as received:
            there = asyncio.create_task(pass_on(reader, to_writer, sent))
            back = asyncio.create_task(pass_on(to_reader, writer, received))
            # The gateway's side decides when a connection is over; a client that is gone ends it as well.
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
            if there.done() and not back.done():
                to_writer.close()
            await asyncio.wait({back}, timeout=5)
            for task in (there, back):
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
        for end in (to_writer, writer):
            end.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port}{base.path}", flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", required=True, type=urlsplit)
    parser.add_argument("--keep", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.keep.mkdir(parents=True, exist_ok=True)
    asyncio.run(serve(arguments.to, arguments.keep))
