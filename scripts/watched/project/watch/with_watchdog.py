"""Prints what watchdog sees below src/lib."""
import time

from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer


class Told(FileSystemEventHandler):
    def on_any_event(self, event):
        # Reading a file changes nothing.
        if event.event_type not in ("opened", "closed_no_write"):
            print(event.event_type, event.src_path, getattr(event, "dest_path", ""), flush=True)


observer = Observer()
observer.schedule(Told(), "src/lib", recursive=True)
observer.start()
print("ready", flush=True)
while True:
    time.sleep(1)
