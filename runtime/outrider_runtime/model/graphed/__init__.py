"""A forward of few rows as one program for a GPU: recorded at load, replayed every round.

On a GPU a forward is hundreds of small kernels, and Python takes longer to start them than they
run. A graph starts all of them at once, but always on the same memory and for the same shapes. So
rows are padded up to a few sizes, each with a graph of its own, and everything that differs between
batches is copied to where the graph reads it. What is replayed gives the bits of the same padded
step run in Python, or graphs are not used.
"""
