"""MCP over the job store: both revisions of the protocol, with and without tasks, on one endpoint."""
