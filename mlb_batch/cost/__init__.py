"""The price of everything, in whole operations: arithmetic over configs and counts, which loads no model.

shapes.py       a model's config -> its shape; the paired model's too
schedule.py     where tokens leave, as data; grids.py: the steps of methods that keep whole grids
flops.py        a schedule's exact cost; paper.py: by the papers' convention
memory.py       what it holds on a device, and how many clips that has room for
total.py        the operations of a whole job
estimate.py     ... from a sample of it, with its interval
budget.py       what a job may spend, in one unit
calibration.py  operations -> seconds, as measured on a device
solve.py        the largest keep within the budget
allocate.py     ... and which clip gets how much of it
"""
