"""How many drafters a target needs: `python -m tools.sizing --help`; docs/operations.md explains.

A capacity model in closed form, a simulator of the same that queues and batches as the services do,
and what measures real services for both.
"""
