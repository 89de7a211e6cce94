"""The sidecar: one actor's queue on one side, its runtime on the other. `python -m groundplane.mesh.sidecar`."""
