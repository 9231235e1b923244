"""What the chain of run.py is held together with: the Ray side of a run.

cluster.py    a Ray to run on: the one that is there, or a local one that is stopped again
pools.py      how the job's actors fit that cluster
parts.py      how much of the input one chain takes
feed.py       the source as a Ray Data datasource; pace.py: how far it runs ahead
reading.py    the first half of the chain, which a job and its measuring share
settling.py   each clip's own keep, measured before the job; purse.py: what all captioners spend from,
              spent.py: ... and what earlier runs have taken out of it
strikes.py    which rows are suspected of having killed an actor
beside.py     where the actors lie that remember something for a run, and how they end
arrivals.py   finished rows, as they come out of the chain
breaker.py    ends a run whose storage gives it nothing
metrics.py    the books, for Prometheus
"""
