"""The published client in Python, where a watcher is asked too late: URL DIR."""

import os
import time

from common import arguments, tell
from e2b import Sandbox

url, directory, _ = arguments()
watch = Sandbox.connect("x", debug=True, sandbox_url=url).files.watch_dir(directory, recursive=True)
paths = [os.path.join(directory, name) for name in ("file", "sub/x")]
for number in range(30_000):
    os.chmod(paths[number % 2], 0o600 | number % 8)
ended = None
deadline = time.monotonic() + 60
# All that the service has yet to hear comes first.
while ended is None and time.monotonic() < deadline:
    time.sleep(0.5)
    try:
        watch.get_new_events()
    except Exception as error:
        ended = error
tell("overflow", [type(ended).__name__, "overflow" in str(ended) or "max_queued_events" in str(ended)])
