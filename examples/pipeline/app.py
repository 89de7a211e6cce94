"""Two actors and a tool that takes a number through both: 10 becomes 25."""

from groundplane import App

app = App("pipeline")


@app.actor
def double(value: int) -> int:
    """Twice the value."""
    return value * 2


@app.actor
async def add_five(value: int) -> int:
    """Five more than the value."""
    return value + 5


app.tool("pipeline", route=[double, add_five], description="Doubles a number and adds five.", timeout=30)
