"""Jobs that start more processes than they may. Each stops by itself, also where nothing bounds it:
at so many that the machine bears it, and after so long that a watcher sees it.
"""

__all__ = ["FORK_BOMB", "RESTLESS_BOMB", "THREAD_BOMB"]

#: Every process doubles itself ten times: 1,024 at the most.
FORK_BOMB = """\
import os, time
ends = time.monotonic() + 20
for _ in range(10):
    try:
        os.fork()
    except OSError:
        time.sleep(0.1)
time.sleep(max(0, ends - time.monotonic()))
"""

#: Twenty processes at a time; each ends as soon as it has started the next, so that no list of them
#: is true for long. Each start takes a byte from the pipe, and there are 1,500.
RESTLESS_BOMB = """\
import os, signal, time
left, put = os.pipe()
os.write(put, bytes(1500))
os.set_blocking(left, False)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        os.write(1, b"began\\n")
        try:
            while os.read(left, 1) and os.fork() == 0:
                time.sleep(0.02)
        except BlockingIOError:
            time.sleep(20)
        os._exit(0)
time.sleep(20)
"""

THREAD_BOMB = """\
import threading, time
threading.stack_size(65536)
for _ in range(1500):
    threading.Thread(target=time.sleep, args=(20,)).start()
"""
