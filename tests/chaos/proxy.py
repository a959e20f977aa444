"""A network that can be cut: a TCP port that forwards to the server's socket, or does worse."""

import contextlib
import socket
import struct
import threading
import time

_RESET = struct.pack("ii", 1, 0)  # close with RST: whoever reads or writes next gets an error


class Proxy:
    """Forward, until told otherwise.

    Modes: `pass`; `stall` (connections stay, no byte moves); `drop` (new and old connections are
    accepted and what they send is thrown away); `reset` (connections are reset, also new ones);
    `refuse` (nobody listens).
    """

    def __init__(self, path):
        self.path = str(path)
        self.mode = "pass"
        self.pairs = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.closed = False
        self._thread(self.accept, self.listener)

    def _thread(self, target, *arguments):
        threading.Thread(target=target, args=arguments, daemon=True).start()

    def set(self, mode):
        """Change the mode, for connections that stand as well."""
        was, self.mode = self.mode, mode
        if mode == "refuse":
            self.listener.close()
        elif was == "refuse":
            self.listener = socket.create_server(("127.0.0.1", self.port))
            self._thread(self.accept, self.listener)
        if mode in {"reset", "refuse"}:
            pairs, self.pairs = self.pairs, []
            for pair in pairs:
                cut(*pair)

    def accept(self, listener):
        while not self.closed:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if self.mode == "reset":
                cut(client)
                continue
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self.path)
            except OSError:
                cut(client, server)
                continue
            self.pairs.append((client, server))
            self._thread(self.forward, client, server)
            self._thread(self.forward, server, client)

    def forward(self, source, target):
        with contextlib.suppress(OSError):
            while True:
                while self.mode == "stall":
                    time.sleep(0.01)
                content = source.recv(65536)
                if not content:
                    break
                while self.mode == "stall":
                    time.sleep(0.01)
                if self.mode != "drop":
                    target.sendall(content)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.closed = True
        self.mode = "pass"
        self.listener.close()
        for pair in self.pairs:
            cut(*pair)


def cut(*ends):
    """Close these sockets at once."""
    for end in ends:
        with contextlib.suppress(OSError):
            if end.family == socket.AF_INET:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.shutdown(socket.SHUT_RDWR)
        end.close()
