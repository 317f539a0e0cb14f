"""The published asynchronous client in Python: URL DIR [token]."""

import asyncio

from common import arguments, change, entry, events, settle, tell
from e2b import AsyncSandbox

url, directory, with_token = arguments()


async def failure(call):
    try:
        await call
    except Exception as error:
        return type(error).__name__
    return None


async def main():
    if with_token:
        sandbox = await AsyncSandbox.connect("x")
    else:
        sandbox = await AsyncSandbox.connect("x", debug=True, sandbox_url=url)
    files = sandbox.files
    tell("running", await sandbox.is_running())
    tell("exists", [await files.exists(directory + name) for name in ("", "/none", "/link")])
    tell("info", [entry(await files.get_info(directory + "/" + name)) for name in ("file", "link")])
    tell("list 2", [one.path[len(directory):] for one in await files.list(directory, depth=2)])
    ignored = lambda event: None
    tell("failures", [
        await failure(files.list(directory + "/none")),
        await failure(files.list(directory + "/file")),
        await failure(files.watch_dir(directory + "/none", ignored)),
        await failure(files.watch_dir(directory + "/file", ignored)),
        await failure(files.get_info(directory + "/none")),
    ])
    seen, flat = [], []
    whole_handle = await files.watch_dir(directory, seen.append, recursive=True, include_entry=True)
    flat_handle = await files.watch_dir(directory, flat.append)
    await asyncio.to_thread(change, directory)
    await asyncio.to_thread(settle)
    tell("recursive", events(seen))
    tell("entry", sorted({one.entry.path[len(directory):] for one in seen if one.entry}))
    tell("flat", events(flat))
    await whole_handle.stop()
    await flat_handle.stop()
    ended = asyncio.get_running_loop().create_future()
    await files.watch_dir(directory, ignored, on_exit=lambda error: ended.set_result(error), timeout=1)
    tell("timeout", type(await asyncio.wait_for(ended, 20)).__name__)


asyncio.run(main())
