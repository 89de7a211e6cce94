"""The tree of a job that fanned out: which envelopes stand for it, what each has come to.

A job has no rows here until its first `Split`: the only envelope is then the implicit root. The progress of a split
branch is the mean of its children, kept up to date on the way to the root. A job ends when no branch is live.

What a transaction has read or written of a tree it keeps (`Tree`): the ends of a thousand children that come in one
call are judged without asking for each.

States: `live`; `split` into children; `done`; `failed`; `held` (failed, but a join may still stand for it); `joined`
(absorbed by a join, with all that was below it).
"""

from __future__ import annotations

from typing import Any

import msgspec

from groundplane.core.errors import ErrorRecord
from groundplane.jobs.drivers.unit import Steps, Unit, one, pack
from groundplane.jobs.port import Finish, Joined, Split
from groundplane.jobs.progress import mean_after

_WITNESSES = 64
_unpack_error = msgspec.msgpack.Decoder(ErrorRecord).decode


class Branch(msgspec.Struct, frozen=True):
    """One row."""

    envelope_id: str
    parent: str | None
    position: int
    total: int
    state: str
    progress: float


class Tree:
    """What a transaction knows of the branches of a job: rows as they are now, and some that are live."""

    __slots__ = ("known", "live")

    def __init__(self) -> None:
        self.known: dict[str, Branch] = {}
        self.live: set[str] = set()

    def set(self, branch: Branch) -> Branch:
        """The row is so now."""
        self.known[branch.envelope_id] = branch
        if branch.state != "live":
            self.live.discard(branch.envelope_id)
        return branch

    def change(self, envelope_id: str, *, state: str | None = None, progress: float | None = None) -> None:
        """The row has changed so."""
        one = self.known.get(envelope_id)
        if one is not None:
            state, progress = state or one.state, one.progress if progress is None else progress
            self.set(Branch(envelope_id, one.parent, one.position, one.total, state, progress))

    def forget(self) -> None:
        """More rows have changed than are worth telling."""
        self.known.clear()
        self.live.clear()


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """What a tree amounts to: the results as nested lists by index (None where a branch has none), and the failures.

    `single` when it is one branch, the root or a join in its place: then its result stands for the job.
    """

    single: bool
    results: Any
    failures: list[ErrorRecord]

    def error(self, first: ErrorRecord) -> ErrorRecord:
        """`first` with the results of the other branches in its details, so that they are not lost."""
        if self.single:
            return first
        details = {**first.details, "failed": len(self.failures), "results": self.results}
        return msgspec.structs.replace(first, details=details)


def find(unit: Unit, seq: int, envelope_id: str) -> Steps[Branch | None]:
    """The branch of an envelope."""
    tree = _tree(unit, seq)
    if envelope_id in tree.known:
        return tree.known[envelope_id]
    row = yield from one(
        "SELECT envelope_id, parent, position, total, state, progress FROM job_branches "
        "WHERE job = ? AND envelope_id = ?",
        seq,
        envelope_id,
    )
    return None if row is None else tree.set(Branch(*row))


def plant(unit: Unit, seq: int, envelope_id: str, progress: float) -> Branch:
    """The implicit root becomes a row."""
    return _insert(unit, seq, Branch(envelope_id, None, 0, 1, "live", progress))


def advance(unit: Unit, seq: int, branch: Branch, progress: float) -> Steps[float]:
    """A branch has come as far as `progress`; never back. Returns the progress of the root."""
    after = max(branch.progress, progress)
    unit.tell(
        "UPDATE job_branches SET progress = ?, heard = TRUE WHERE job = ? AND envelope_id = ?",
        (after, seq, branch.envelope_id),
    )
    _tree(unit, seq).change(branch.envelope_id, progress=after)
    return (yield from _climb(unit, seq, branch, after))


def split(unit: Unit, seq: int, branch: Branch, change: Split) -> Steps[str]:
    """Replace a branch by its children; they begin where it stands. Returns '' or why nothing changed."""
    if branch.state == "split":
        if (yield from _children(seq, branch)) == change.children:
            return "repeated"
        if not (yield from withdraw(unit, seq, branch)):
            return "late"
    elif branch.state != "live":
        return "late"
    unit.tell("UPDATE job_branches SET state = 'split' WHERE job = ? AND envelope_id = ?", (seq, branch.envelope_id))
    tree = _tree(unit, seq)
    tree.change(branch.envelope_id, state="split")
    total = len(change.children)
    unit.tell_each(
        "INSERT INTO job_branches (job, envelope_id, parent, position, total, state, progress) "
        "VALUES (?, ?, ?, ?, ?, 'live', ?)",
        [(seq, child, branch.envelope_id, at, total, branch.progress) for at, child in enumerate(change.children)],
    )
    for at, child in enumerate(change.children):
        tree.set(Branch(child, branch.envelope_id, at, total, "live", branch.progress))
    return ""


def withdraw(unit: Unit, seq: int, branch: Branch) -> Steps[bool]:
    """Take a split back, unless one of the children was heard of: the handler crashed before it sent them, ran again,
    and came to something else."""
    heard = yield from one(
        "SELECT 1 FROM job_branches WHERE job = ? AND parent = ? AND (heard OR state <> 'live') LIMIT 1",
        seq,
        branch.envelope_id,
    )
    if heard is not None:
        return False
    unit.tell("DELETE FROM job_branches WHERE job = ? AND parent = ?", (seq, branch.envelope_id))
    unit.tell("UPDATE job_branches SET state = 'live' WHERE job = ? AND envelope_id = ?", (seq, branch.envelope_id))
    _tree(unit, seq).forget()
    return True


def join(unit: Unit, seq: int, parent: Branch, change: Joined) -> Steps[str]:
    """Replace a split branch and all below it by the joined envelope. Returns '' or why nothing changed."""
    if parent.state != "split":
        return "repeated" if (yield from find(unit, seq, change.envelope_id)) is not None else "late"
    unit.tell(
        """WITH RECURSIVE below (id) AS (
             SELECT envelope_id FROM job_branches WHERE job = :job AND parent = :parent
             UNION ALL
             SELECT one.envelope_id FROM below CROSS JOIN job_branches AS one
             WHERE one.job = :job AND one.parent = below.id)
           UPDATE job_branches SET state = 'joined', result = NULL
           WHERE job = :job AND envelope_id IN (SELECT id FROM below) AND state IN ('live', 'split', 'done', 'held')""",
        {"job": seq, "parent": parent.envelope_id},
    )
    unit.tell("UPDATE job_branches SET state = 'joined' WHERE job = ? AND envelope_id = ?", (seq, parent.envelope_id))
    _tree(unit, seq).forget()
    _insert(unit, seq, msgspec.structs.replace(parent, envelope_id=change.envelope_id, state="live"))
    return ""


def finish(unit: Unit, seq: int, branch: Branch, change: Finish) -> str:
    """Record how a branch ended; its state afterwards."""
    state = "done" if change.error is None else "held" if change.holds else "failed"
    unit.tell(
        "UPDATE job_branches SET state = ?, result = ?, error = ?, aborted = ? "
        "WHERE job = ? AND envelope_id = ? AND state = 'live'",
        (
            state,
            pack(change.result) if change.error is None else None,
            pack(change.error) if change.error is not None else None,
            change.aborted,
            seq,
            branch.envelope_id,
        ),
    )
    _tree(unit, seq).change(branch.envelope_id, state=state)
    return state


def any_live(unit: Unit, seq: int) -> Steps[bool]:
    """Whether the job still waits for a branch."""
    tree = _tree(unit, seq)
    if not tree.live:
        rows = yield "SELECT envelope_id FROM job_branches WHERE job = ? AND state = 'live' LIMIT ?", (seq, _WITNESSES)
        tree.live.update(row[0] for row in rows)
    return bool(tree.live)


def ending(seq: int) -> Steps[Ending]:
    """What the tree amounts to as it stands; the failures by index."""
    rows = yield (
        "SELECT envelope_id, parent, state, result, error FROM job_branches "
        "WHERE job = ? AND state <> 'joined' ORDER BY position, envelope_id",
        (seq,),
    )
    children: dict[str | None, list[tuple[str, str, bytes | None]]] = {}
    for envelope_id, parent, state, result, _ in rows:
        children.setdefault(parent, []).append((envelope_id, state, result))

    def results(envelope_id: str, state: str, result: bytes | None) -> Any:
        if state == "split":
            return [results(*child) for child in children.get(envelope_id, [])]
        return msgspec.Raw(result) if result is not None else None

    root = children[None][0]
    return Ending(
        single=len(rows) == 1,
        results=results(*root),
        failures=[_unpack_error(row[4]) for row in rows if row[2] in ("failed", "held")],
    )


def _insert(unit: Unit, seq: int, branch: Branch) -> Branch:
    unit.tell(
        "INSERT INTO job_branches (job, envelope_id, parent, position, total, state, progress) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (seq, branch.envelope_id, branch.parent, branch.position, branch.total, branch.state, branch.progress),
    )
    return _tree(unit, seq).set(branch)


def _children(seq: int, branch: Branch) -> Steps[list[str]]:
    rows = yield (
        "SELECT envelope_id FROM job_branches WHERE job = ? AND parent = ? ORDER BY position",
        (seq, branch.envelope_id),
    )
    return [row[0] for row in rows]


def _climb(unit: Unit, seq: int, branch: Branch, after: float) -> Steps[float]:
    before, total, parent = branch.progress, branch.total, branch.parent
    while parent is not None:
        above = yield from find(unit, seq, parent)
        if above is None:  # a join took its place: the branch is no part of the tree any more
            break
        mean = mean_after(above.progress, before, after, total)
        _set_progress(unit, seq, parent, mean)
        before, after, total, parent = above.progress, mean, above.total, above.parent
    return after


def _set_progress(unit: Unit, seq: int, envelope_id: str, progress: float) -> None:
    unit.tell("UPDATE job_branches SET progress = ? WHERE job = ? AND envelope_id = ?", (progress, seq, envelope_id))
    _tree(unit, seq).change(envelope_id, progress=progress)


def _tree(unit: Unit, seq: int) -> Tree:
    tree: Tree | None = unit.trees.get(seq)
    if tree is None:
        tree = unit.trees[seq] = Tree()
    return tree
