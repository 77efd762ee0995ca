"""One contender, one workload, once, in a process of its own. Prints one line of JSON."""

import asyncio
import json
import sys

import plugins
from contract import Session
from load_client import LoadClient

LIMIT_SECONDS = 90.0


async def measure(
    contender_name: str, workload_name: str, url: str, load_path: str, quick: bool
) -> dict[str, object]:
    contender = plugins.contender(contender_name).build(url)
    load = await LoadClient.open(load_path)
    session = Session(contender, load, quick, remarks=[])
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            figures = await plugins.workload(workload_name).run(session)
    finally:
        await contender.publisher.stop()
        load.close()
    return {"figures": dict(figures), "remarks": session.remarks}


def main() -> None:
    contender_name, workload_name, url, load_path, pace = sys.argv[1:]
    answer = asyncio.run(measure(contender_name, workload_name, url, load_path, pace == "quick"))
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
