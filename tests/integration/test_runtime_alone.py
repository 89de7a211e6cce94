"""The runtime as one file, on any Python from 3.9 on, and its command line and environment."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime_process import SOURCE, eventually, runtime

pytestmark = pytest.mark.integration

PLAIN = """
import asyncio
from typing import Dict, List, Optional

def double(value: int) -> int:
    return value * 2

def typed(a: Optional[int], b: float = 1, c: List[int] = [], d: "Dict[str, int]" = {}, e: str = ""):
    return [a, b, c, d, e]

def context(payload, ctx):
    ctx.progress(50, "half")
    return [ctx.attempt, ctx.headers, ctx.deadline.isoformat()]

def gen(count):
    yield from range(count)

async def agen(count):
    for n in range(count):
        await asyncio.sleep(0)
        yield n

def nan(payload):
    return float("nan")

def raw(payload):
    return b"bytes"

def fail(payload):
    raise ValueError("for protocol 0")

def process(payload):
    payload["handled"] = True
    return payload

class Model:
    def __init__(self, path="/models"):
        self.path = path

    def process(self, payload: dict) -> dict:
        return {**payload, "path": self.path}
"""


def python39() -> Sequence[str] | None:
    """A Python 3.9, from PATH or from pyenv's folder."""
    root = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    candidates = [shutil.which("python3.9")]
    candidates += sorted(str(path) for path in Path(root).glob("versions/3.9*/bin/python3.9"))
    for candidate in filter(None, candidates):
        command = [candidate, "-c", "import sys; print(sys.version_info[:2])"]
        if subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "(3, 9)":
            return [candidate]
    return None


INTERPRETERS = {"3.9": python39(), "isolated": [sys.executable, "-I", "-S"], "newest": [sys.executable]}


@pytest.fixture(params=["3.9", "3.9 -I -S", "isolated"])
def interpreter(request: pytest.FixtureRequest) -> Sequence[str]:
    name, *flags = request.param.split()
    found = INTERPRETERS[name]
    if found is None:
        pytest.skip("python3.9 is neither on PATH nor in pyenv's folder")
    return [*found, *flags]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file as `--print` gives it, on its own in a folder, as it would be mounted."""
    copy = tmp_path_factory.mktemp("mounted") / "groundplane_runtime.py"
    command = [sys.executable, str(SOURCE), "--print"]
    copy.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    return copy


@pytest.mark.req("MESH-24.1", "MESH-24.2")
class TestOneFile:
    def test_it_prints_the_very_source_that_is_installed(self, printed: Path) -> None:
        assert printed.read_bytes() == SOURCE.read_bytes()

    def test_it_needs_the_standard_library_alone(self, printed: Path) -> None:
        tree = ast.parse(printed.read_text(), feature_version=(3, 9))
        imported = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                imported.add(str(node.module).partition(".")[0])
        assert imported - set(sys.stdlib_module_names) == {"__future__", "msgspec"} - {"__future__"}

    def test_both_protocols_work_in_json(self, tmp_path: Path, printed: Path, interpreter: Sequence[str]) -> None:
        with runtime(tmp_path, "handlers:double", code=PLAIN, interpreter=interpreter, source=printed) as running:
            with running.connect() as client:
                assert client.welcome["codec"] == "json"
                assert client.value({"value": 5}) == 10
                assert client.value(5) == 10
                error = client.error({"value": "5"})
                assert error["reason"] == "msg_parsing_error"
                assert error["message"] == "value: '5' does not fit int: expected int"
                assert client.error({"value": True})["reason"] == "msg_parsing_error"
                assert "'valeu' is unknown" in client.error({"valeu": 1})["message"]
            assert running.old({"payload": 4, "route": {"actors": ["a"], "current": 0}}) == [
                {"payload": 8, "route": {"actors": ["a"], "current": 1}}
            ]
            assert running.terminate() == 0

    @pytest.mark.parametrize(
        ("name", "payload", "expected"),
        [
            ("typed", {"a": None}, [[None, 1, [], {}, ""]]),
            ("typed", {"a": 1, "b": 2, "c": [1], "d": {"x": 1}, "e": "é"}, [[1, 2.0, [1], {"x": 1}, "é"]]),
            ("gen", 3, [0, 1, 2]),
            ("agen", {"count": 3}, [0, 1, 2]),
            ("Model", {"a": "\u4f60\u597d"}, [{"a": "\u4f60\u597d", "path": "/models"}]),
            ("Model.process", {}, [{"path": "/models"}]),
        ],
    )
    def test_handlers_of_every_kind(
        self, tmp_path: Path, printed: Path, interpreter: Sequence[str], name: str, payload: object, expected: object
    ) -> None:
        with runtime(tmp_path, f"handlers.{name}", code=PLAIN, interpreter=interpreter, source=printed) as running:
            with running.connect() as client:
                assert [output["payload"] for output in client.call(payload)["outputs"]] == expected

    def test_context_errors_and_limits(self, tmp_path: Path, printed: Path, interpreter: Sequence[str]) -> None:
        with runtime(tmp_path, "handlers:context", code=PLAIN, interpreter=interpreter, source=printed) as running:
            with running.connect() as client:
                assert client.value(1, deadline_ms=0) == [1, {"trace": "t-1"}, "1970-01-01T00:00:00+00:00"]
                assert client.events() == [{"t": "progress", "id": 1, "percent": 50, "message": "half"}]
        for name, says in (("nan", "not JSON compliant"), ("raw", "bytes"), ("typed", "expected int or")):
            with runtime(tmp_path, f"handlers:{name}", code=PLAIN, interpreter=interpreter, source=printed) as running:
                with running.connect() as client:
                    assert says in client.error({"a": "x"})["message"]

    def test_deep_nesting_is_an_error_and_no_crash(
        self, tmp_path: Path, printed: Path, interpreter: Sequence[str]
    ) -> None:
        with runtime(tmp_path, "handlers:process", code=PLAIN, interpreter=interpreter, source=printed) as running:
            (answer,) = running.old(b'{"payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
            assert answer["error"] == "msg_parsing_error"
            with running.connect() as client:
                assert client.value({"a": 1}) == {"a": 1, "handled": True}

    def test_a_handler_with_threads_at_import_starts_again_with_the_same_flags(
        self, tmp_path: Path, printed: Path, interpreter: Sequence[str]
    ) -> None:
        code = "import threading, time, sys\nthreading.Thread(target=time.sleep, args=(999,), daemon=True).start()\n"
        code += "def flags(payload):\n    return [sys.flags.isolated, sys.flags.no_site]\n"
        with runtime(tmp_path, "handlers:flags", code=code, interpreter=interpreter, source=printed) as running:
            with running.connect() as client:
                isolated = int("-I" in interpreter)
                assert client.value(1) == [isolated, isolated]


@pytest.mark.req("MESH-23.1", "MESH-23.2")
class TestCommandLine:
    def test_everything_may_come_from_the_environment(self, tmp_path: Path) -> None:
        path = str(tmp_path / "env.sock")
        environment = {
            "GROUNDPLANE_HANDLER": "handlers:double",
            "GROUNDPLANE_SOCKET_PATH": path,
            "GROUNDPLANE_SOCKET_CHMOD": "0o640",
            "GROUNDPLANE_WORKERS": "3",
            "GROUNDPLANE_READY_FILE": str(tmp_path / "ready"),
            "GROUNDPLANE_GRACE_S": "5s",
        }
        (tmp_path / "handlers.py").write_text(PLAIN)
        with runtime(tmp_path, "", path="", environment=environment, ready=False) as running:
            running.socket = path
            running.wait_until_ready()
            assert os.stat(path).st_mode & 0o777 == 0o640
            eventually((tmp_path / "ready").exists, "the ready file")
            ready = json.loads((tmp_path / "ready").read_text())
            assert ready == {"pid": running.pid, "socket": path, "handler": "handlers:double"}
            with running.connect() as client:
                assert client.welcome["workers"] == 3
                assert client.value(2) == 4
            assert running.terminate() == 0
            assert not (tmp_path / "ready").exists()

    def test_the_asya_names_are_fallbacks(self, tmp_path: Path) -> None:
        path = str(tmp_path / "asya.sock")
        environment = {
            "ASYA_HANDLER": "handlers.process",
            "ASYA_SOCKET_PATH": path,
            "ASYA_SOCKET_CHMOD": "666",
            "ASYA_HANDLER_MODE": "payload",
            "ASYA_LOG_LEVEL": "DEBUG",
        }
        (tmp_path / "handlers.py").write_text(PLAIN)
        with runtime(tmp_path, "", path="", environment=environment, ready=False) as running:
            running.socket = path
            running.wait_until_ready()
            assert os.stat(path).st_mode & 0o777 == 0o666
            answer = running.old({"payload": {"a": 1}, "route": {"steps": ["x"], "current": 0}})
            assert answer == [{"payload": {"a": 1, "handled": True}, "route": {"steps": ["x"], "current": 1}}]

    def test_flags_beat_our_names_which_beat_the_older_ones(self, tmp_path: Path) -> None:
        environment = {
            "GROUNDPLANE_HANDLER": "handlers:fail",
            "ASYA_HANDLER": "handlers:nan",
            "GROUNDPLANE_HANDLER_MODE": "payload",
            "ASYA_HANDLER_MODE": "envelope",
        }
        with runtime(tmp_path, "handlers:double", code=PLAIN, environment=environment) as running:
            with running.connect() as client:
                assert client.welcome["handler"] == "handlers:double"
                assert client.welcome["mode"] == "payload"
        with runtime(tmp_path, "", environment=environment) as running, running.connect() as client:
            assert client.welcome["handler"] == "handlers:fail"

    @pytest.mark.parametrize(
        ("flags", "environment", "says"),
        [
            (["--socket", "s"], {}, "handler: None is not set; give --handler or set GROUNDPLANE_HANDLER"),
            (["--handler", "a:b"], {}, "socket: None is not set; give --socket or set GROUNDPLANE_SOCKET_PATH"),
            (["--workers", "0"], {}, "--workers: invalid number from 1 to 10000 value: '0'"),
            (["--workers", "many"], {}, "invalid number from 1 to 10000 value: 'many'"),
            (["--socket-chmod", "999"], {}, "--socket-chmod: invalid octal mode value: '999'"),
            (["--grace-s", "soon"], {}, "--grace-s: invalid duration value: 'soon'"),
            (["--handler-mode", "x"], {}, "--handler-mode: invalid mode (payload, message) value: 'x'"),
            (["--log-level", "loud"], {}, "--log-level: invalid log level"),
            (["--nonsense"], {}, "unrecognized arguments: --nonsense"),
            ([], {"ASYA_SOCKET_CHMOD": "rw"}, "--socket-chmod: invalid octal mode value: 'rw'"),
        ],
    )
    def test_a_wrong_setting_is_named_and_ends_with_code_2(
        self, tmp_path: Path, flags: list[str], environment: dict[str, str], says: str
    ) -> None:
        if "--socket" not in flags and "--handler" not in flags:
            flags = [*flags, "--handler", "handlers:double", "--socket", "s"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("ASYA_", "GROUNDPLANE_"))}
        done = subprocess.run(
            [sys.executable, str(SOURCE), *flags],
            cwd=tmp_path, env={**clean, **environment}, capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr

    def test_durations_and_modes_read_as_people_write_them(self) -> None:
        from groundplane.mesh import runtime as module

        assert [module._duration(text) for text in ("30", "30s", "500ms", "2m", "0.5")] == [30, 30, 0.5, 120, 0.5]
        assert [module._octal(text) for text in ("666", "0o660", "")] == [0o666, 0o660, None]
        for text in ("-1", "nan", "inf", "1h", ""):
            with pytest.raises(ValueError):
                module._duration(text)


class TestImportFailures:
    @pytest.mark.req("MESH-06.1", "MESH-25.3")
    @pytest.mark.parametrize("preload", [(), ("--no-preload",)])
    @pytest.mark.parametrize(
        ("handler", "code", "says"),
        [
            ("nowhere:double", "", "No module named 'nowhere'"),
            ("handlers:double", "import missing_thing\n", "No module named 'missing_thing'"),
            ("handlers.double", "import missing_thing\n", "No module named 'missing_thing'"),
            ("handlers:double", "def double(:\n", "SyntaxError"),
            ("handlers:double", "raise SystemExit(0)\n", "SystemExit"),
            ("handlers:double", "1 / 0\n", "ZeroDivisionError"),
            ("handlers:double", "", "has no attribute 'double'"),
            ("handlers:double", "double = 5\n", "which cannot be called"),
            ("handlers", "", "names a module only"),
            ("handlers:", "", "is not module:function"),
            ("gone.py:double", "", "there is no file 'gone.py'"),
            ("handlers:Model", "class Model:\n    pass\n", "neither a method 'process' nor '__call__'"),
            (
                "handlers:Model",
                "class Model:\n    def __init__(self):\n        raise OSError('no weights')\n"
                "    def process(self, payload): ...\n",
                "OSError: no weights",
            ),
        ],
    )
    def test_a_broken_handler_ends_the_runtime_with_code_3_and_says_why(
        self, tmp_path: Path, handler: str, code: str, says: str, preload: tuple[str, ...]
    ) -> None:
        with runtime(tmp_path, handler, *preload, code=code, ready=False) as running:
            assert running.ended() == 3
            assert "handler_import_failed: handler: " in running.stderr
            assert says in running.stderr
            assert not os.path.exists(running.socket)

    @pytest.mark.req("MESH-25.3")
    def test_workers_that_die_while_they_start_end_the_runtime_with_code_5(self, tmp_path: Path) -> None:
        code = "import os, signal\ndef f(p): ...\nos.kill(os.getpid(), signal.SIGKILL)\n"
        with runtime(tmp_path, "handlers:f", "--no-preload", code=code, ready=False) as running:
            assert running.ended() == 5

    @pytest.mark.req("MESH-23.1")
    def test_a_socket_in_a_folder_that_cannot_be_made_ends_with_code_4(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        path = str(tmp_path / "file" / "s.sock")
        with runtime(tmp_path, "handlers:double", code=PLAIN, path=path, ready=False) as running:
            assert running.ended() == 4
            assert "cannot be bound" in running.stderr

    @pytest.mark.req("MESH-21.1")
    def test_secrets_in_payloads_are_not_logged(self, tmp_path: Path) -> None:
        with runtime(tmp_path, "handlers:fail", "--log-level", "DEBUG", code=PLAIN) as running:
            with running.connect() as client:
                assert client.error({"password": "hunter2"})["message"] == "for protocol 0"
            assert running.terminate() == 0
            assert "hunter2" not in running.stderr + running.stdout


@pytest.mark.req("MESH-24.1")
def test_importing_the_runtime_brings_in_no_other_module_of_groundplane() -> None:
    code = "import sys, groundplane.mesh.runtime as r; print(sorted(m for m in sys.modules if 'groundplane' in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert loaded == {"groundplane", "groundplane._version", "groundplane.mesh", "groundplane.mesh.runtime"}
    heavy = "import sys, groundplane.mesh.runtime; print('asyncio' in sys.modules, 'argparse' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
