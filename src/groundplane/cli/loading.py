"""Loading a user's App from `module:attribute`, `module` or a path, with errors that say what to mend."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path

import msgspec

from groundplane.app import App
from groundplane.core.errors import FailedPrecondition, GroundplaneError, InvalidArgument, NotFound
from groundplane.core.names import did_you_mean
from groundplane.mesh.spec import ActorSpec, Offer, ToolSpec


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """An App as a value: what processes need to know of it. `folder` is where its modules are imported from, `serves`
    says whether it has something for the role services.
    """

    name: str
    target: str
    folder: Path
    actors: dict[str, ActorSpec]
    offer: Offer
    files: list[Path]
    serves: bool = False

    @property
    def tools(self) -> dict[str, ToolSpec]:
        """The tools by name."""
        return {tool.name: tool for tool in self.offer.tools}


def load_app(target: str, folder: Path | None = None) -> tuple[App, Path]:
    """The App and the folder that its modules are imported from, which is put on `sys.path`.

    `target` is `module:attribute`, `module` (its only App), or a path to a file, with or without `:attribute`. Raises
    `not_found` for what is not there and `failed_precondition` (reason `handler_import_failed`) for a module that
    fails.
    """
    place, _, attribute = target.partition(":")
    if not place or (not attribute and target.endswith(":")):
        raise InvalidArgument(f"app: {target!r} is not module:attribute; write app:app or path/app.py")
    if place.endswith(".py") or "/" in place:
        file = (folder or Path()).joinpath(place).expanduser().resolve()
        if not file.is_file():
            raise NotFound(f"app: {target!r}: there is no file {str(file)!r}{_similar(file)}")
        where, module = file.parent, file.stem
        if not module.isidentifier():
            raise InvalidArgument(f"app: {target!r}: {file.name!r} cannot be imported; name it like app.py")
    else:
        where, module = (folder or Path()).resolve(), place
        if not all(part.isidentifier() for part in module.split(".")):
            raise InvalidArgument(f"app: {target!r}: {module!r} is no module name; write app:app or path/app.py")
    if str(where) not in sys.path:
        sys.path.insert(0, str(where))
    return _app_of(_imported(target, module, where), target, attribute), where


def describe(target: str, folder: Path | None = None) -> Description:
    """Load the App here and describe it."""
    before = set(sys.modules)
    app, where = load_app(target, folder)
    files = {_file_of(name) for name in set(sys.modules) - before} - {None}
    return Description(
        name=app.name,
        target=target,
        folder=where,
        actors=app.actors,
        offer=app.offer,
        serves=app.serves,
        files=sorted(file for file in files if file is not None),
    )


def describe_apart(target: str, folder: Path | None = None) -> Description:
    """Load the App in a forked child and describe it: the caller stays free of the user's modules and threads.

    Call it before threads are started. Raises what the loading raised, or `failed_precondition` where the child died.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _describe_into(writing, target, folder)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    return decode_answer(target, answer, os.waitstatus_to_exitcode(status))


def decode_answer(target: str, answer: bytes, status: int) -> Description:
    """What `describe` answered in another process, raised again if it was an error."""
    if not answer:
        raise FailedPrecondition(
            f"app: {target!r} ended the process while it was imported (status {status}); "
            "nothing at the top of a module may exit",
            reason="handler_import_failed",
        )
    from groundplane.core.errors import ErrorRecord, from_record

    if answer[:1] == b"!":
        raise from_record(msgspec.msgpack.decode(answer[1:], type=ErrorRecord))
    return msgspec.msgpack.decode(answer[1:], type=Description, dec_hook=lambda kind, value: kind(value))


def answer(target: str, folder: Path | None) -> bytes:
    """`describe` as bytes for another process: `+` and the description, or `!` and the error."""
    try:
        return b"+" + msgspec.msgpack.encode(describe(target, folder), enc_hook=str)
    except GroundplaneError as error:
        return b"!" + msgspec.msgpack.encode(error.to_record())


def _describe_into(writing: int, target: str, folder: Path | None) -> None:
    status = 1
    try:
        os.dup2(2, 1)  # what the module prints is no output of this command
        text = answer(target, folder)
        with open(writing, "wb") as pipe:
            pipe.write(text)
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def _imported(target: str, module: str, where: Path) -> object:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except GroundplaneError as error:
        raise InvalidArgument(f"{error.message} (in {_place(error) or target})", reason=error.reason) from error
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise NotFound(
                f"app: {target!r}: there is no module {error.name!r} in {str(where)!r}"
                f"{_similar(where / f'{module}.py')}"
            ) from error
        raise _failed(target, error) from error
    except Exception as error:  # whatever a user's module may raise
        raise _failed(target, error) from error
    except SystemExit as error:
        raise _failed(target, error) from error


def _app_of(module: object, target: str, attribute: str) -> App:
    names = vars(module)
    apps = {name: value for name, value in names.items() if isinstance(value, App) and not name.startswith("_")}
    if attribute:
        if attribute not in names:
            hint = did_you_mean(attribute, apps or names) or "; write app = App('name') in it"
            raise NotFound(f"app: {target!r}: the module has no {attribute!r}{hint}")
        found = names[attribute]
        if not isinstance(found, App):
            raise InvalidArgument(f"app: {target!r}: {attribute!r} is {type(found).__name__}, not a groundplane.App")
        return found
    distinct = list({id(value): name for name, value in apps.items()}.values())
    if "app" in apps or len(distinct) == 1:
        return apps["app" if "app" in apps else distinct[0]]
    if not apps:
        raise NotFound(f"app: {target!r}: the module has no App; write app = App('name') in it")
    raise InvalidArgument(f"app: {target!r}: the module has several; write one of {_targets(target, distinct)}")


def _targets(target: str, names: list[str]) -> str:
    return ", ".join(f"{target}:{name}" for name in sorted(names))


def _failed(target: str, error: BaseException) -> FailedPrecondition:
    where = _place(error)
    return FailedPrecondition(
        f"app: {target!r} cannot be imported: {type(error).__name__}: {error}{f' ({where})' if where else ''}",
        reason="handler_import_failed",
    )


def _place(error: BaseException) -> str:
    """File and line of the user's code that raised."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    own = str(Path(__file__).resolve().parents[1])
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith((own, "<frozen"))]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _similar(file: Path) -> str:
    if not file.parent.is_dir():
        return ""
    names = [one.name for one in file.parent.glob("*.py")]
    near = difflib.get_close_matches(file.name, names, n=1)
    return f"; did you mean {near[0].removesuffix('.py')!r}?" if near else ""


def _file_of(name: str) -> Path | None:
    """The source of a loaded module, unless it is installed."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if not file or "site-packages" in file or file.startswith((sys.base_prefix, str(Path(__file__).parents[1]))):
        return None
    return Path(file)
