"""One contender, one workload, once, in a process of its own. Prints one line of JSON."""

import asyncio
import json
import logging
import os
import sys
from urllib.parse import urlsplit

import plugins
from catalogue import ENTRIES
from contract import Session
from load_client import LoadClient

LIMIT_SECONDS = 90.0
STOP_SECONDS = 5.0


async def measure(
    contender_name: str, workload_name: str, url: str, load_path: str, quick: bool
) -> None:
    contender = plugins.contender(contender_name).build(url)
    load = await LoadClient.open(load_path)
    load.wire = contender.wire
    divisor = ENTRIES[contender_name].divisor
    port = urlsplit(url).port or 6379
    session = Session(contender, load, quick, divisor, port, remarks=[])
    async with asyncio.timeout(LIMIT_SECONDS):
        figures = await plugins.workload(workload_name).run(session)
    print(json.dumps({"figures": dict(figures), "remarks": session.remarks}), flush=True)
    load.close()
    await asyncio.wait([asyncio.ensure_future(contender.publisher.stop())], timeout=STOP_SECONDS)
    os._exit(0)  # how a hundred thousand connections are torn down is no figure here


def main() -> None:
    contender_name, workload_name, url, load_path, pace = sys.argv[1:]
    logging.basicConfig(level=logging.ERROR)
    work = measure(contender_name, workload_name, url, load_path, pace == "quick")
    if ENTRIES[contender_name].loop == "uvloop":
        import uvloop  # noqa: PLC0415 - where it is measured, and nowhere else

        uvloop.run(work)
    else:
        asyncio.run(work)


if __name__ == "__main__":
    main()
