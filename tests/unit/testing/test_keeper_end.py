"""The keeper goes only after whoever asked for the end has the answer."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from groundplane.testing.servers.keeper import SOCKET, Keeper, _Listener
from groundplane.testing.servers.settings import KitSettings

pytestmark = pytest.mark.req("KIT-01")


class _Watched(threading.Event):
    """Tells, at the moment in which it is set, whether the answer has arrived."""

    def __init__(self, asker: socket.socket) -> None:
        super().__init__()
        self.asker = asker
        self.answered_before = False

    def set(self) -> None:
        self.asker.settimeout(5.0)
        self.answered_before = bool(self.asker.recv(1000, socket.MSG_PEEK))
        super().set()


def test_the_process_may_go_when_the_answer_to_the_end_is_sent_and_not_before(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, KitSettings())
    with _Listener(keeper) as listener, socket.socket(socket.AF_UNIX) as asker:
        serving = threading.Thread(target=listener.serve_forever, args=(0.02,))
        serving.start()
        keeper.over = watched = _Watched(asker)
        try:
            asker.connect(str(tmp_path / SOCKET))
            asker.sendall(b'{"do": "shut"}\n')
            assert watched.wait(10.0)
            assert watched.answered_before
            assert json.loads(asker.recv(1000)) == {"ok": os.getppid()}
            assert keeper.ending.is_set()
        finally:
            listener.shutdown()
            serving.join()
