"""The published client in Python: URL DIR [token]."""

import os

from common import arguments, change, entry, events, settle, tell
from e2b import Sandbox

url, directory, with_token = arguments()
sandbox = Sandbox.connect("x") if with_token else Sandbox.connect("x", debug=True, sandbox_url=url)
files = sandbox.files


def failure(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return None


tell("running", sandbox.is_running())
tell("exists", [files.exists(directory), files.exists(directory + "/none"), files.exists(directory + "/link")])
tell("info", [entry(files.get_info(directory + "/" + name)) for name in ("file", "link")])
tell("list", [[one.name, one.path] for one in files.list(directory)])
tell("list 2", [one.path[len(directory):] for one in files.list(directory, depth=2)])
tell("failures", [
    failure(lambda: files.list(directory + "/none")),
    failure(lambda: files.list(directory + "/file")),
    failure(lambda: files.watch_dir(directory + "/none")),
    failure(lambda: files.watch_dir(directory + "/file")),
    failure(lambda: files.get_info(directory + "/none")),
])
whole = files.watch_dir(directory, recursive=True, include_entry=True, allow_network_mounts=True)
flat = files.watch_dir(directory)
change(directory)
settle()
seen = whole.get_new_events()
tell("recursive", events(seen))
tell("entry", sorted({one.entry.path[len(directory):] for one in seen if one.entry}))
tell("flat", events(flat.get_new_events()))
tell("again", len(whole.get_new_events()))
whole.stop()
flat.stop()
tell("stopped", failure(whole.get_new_events))
tell("made", [files.make_dir(directory + "/made/x"), files.make_dir(directory + "/made/x")])
tell("moved", files.rename(directory + "/made/x", directory + "/other/y").path[len(directory):])
files.remove(directory + "/made")
files.remove(directory + "/other")
tell("removed", sorted(os.listdir(directory)))
