"""A model's forward, compiled ahead of time into a library that runs without Python.

For small models a forward is mostly Python. Torch's compiler turns it into one call, with any
number of rows: what is ours (matrix products, attention, norms) stays as it is, the rest becomes
loops, and what those would round otherwise stays torch's own. So it gives the same bits as the
model run in Python, or it is not used; which of the two runs a round never shows in a text.
"""
