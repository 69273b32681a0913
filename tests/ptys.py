"""A real terminal of this machine, for tests of what is shown on one."""

import fcntl
import os
import re
import struct
import termios
import threading


class Terminal:
    """A terminal of some columns whose output is collected; it can hang up."""

    def __init__(self, columns, encoding):
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = open(slave, "w", encoding=encoding)  # noqa: SIM115 -- closed by the test
        self.told, self.over = b"", False
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self):
        while True:
            try:
                got = os.read(self.master, 1 << 16)
            except OSError:
                return
            if not got:
                return
            self.told += got

    def text(self):
        self.stream.close()
        self.thread.join()
        os.close(self.master)
        return re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", self.told).decode(self.stream.encoding)
