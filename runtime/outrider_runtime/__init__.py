"""What both services are built on. Only `outrider_runtime.model` imports torch."""
