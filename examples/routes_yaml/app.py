"""Which actors there are. The tools are in `routes.yaml`."""

from groundplane import App

app = App("routes-yaml")
app.add_actor("handlers:tokenize")
app.add_actor("handlers:count", timeout=30)
