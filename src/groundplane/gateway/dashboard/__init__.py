"""The dashboard at `/`: pages made on the server, live with htmx, readable without JavaScript. See `mount`."""
