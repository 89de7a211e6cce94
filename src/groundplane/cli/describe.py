"""`python -m groundplane.cli.describe TARGET`: describes an App in a process of its own, for a reload."""

from __future__ import annotations

import asyncio
import os
import sys

from groundplane.cli.loading import Description, answer, decode_answer
from groundplane.core.errors import FailedPrecondition

TIMEOUT_S = 60.0


async def describe_afresh(target: str) -> Description:
    """Load the App in a new process and describe it. Raises as `load_app` does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, target, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            data, _ = await process.communicate()
    except TimeoutError as error:
        raise FailedPrecondition(
            f"app: {target!r} was not imported within {TIMEOUT_S:g} s", reason="handler_import_failed"
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return decode_answer(target, data, process.returncode or 0)


def main() -> int:
    """Write the answer to standard output; what the module prints goes to standard error."""
    out = os.dup(1)
    os.dup2(2, 1)
    with open(out, "wb") as pipe:
        pipe.write(answer(sys.argv[1], None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
