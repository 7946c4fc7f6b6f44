"""The commands of `outrider`, one module each. Needs typer and rich."""
