"""A tool that deletes what is older than it may be, after a person has said yes."""

from pathlib import Path

from groundplane import App, Context, Declined

app = App("approval")


@app.actor
async def clean(folder: str, ctx: Context) -> dict:
    """Find what is old, ask, delete it once."""
    found = await ctx.once("find", lambda: sorted(str(path) for path in Path(folder).glob("*.old")))
    if not found:
        return {"deleted": []}
    try:
        sure = await ctx.ask(f"Delete {len(found)} files of {folder}?", key="sure")
    except Declined:
        sure = False
    if not sure:
        return {"deleted": []}
    return {"deleted": await ctx.once("delete", lambda: _delete(found))}


def _delete(found: list[str]) -> list[str]:
    for path in found:
        Path(path).unlink(missing_ok=True)
    return found


app.tool("clean", route=[clean], description="Deletes the *.old files of a folder, if you say so.", timeout=60)
