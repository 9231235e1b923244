"""`mlb-batch evaluate`: any model x methods x budgets on a benchmark, with intervals, costs and pictures.

spec.py        EvalSpec: the evaluation file
benchmarks.py  the table of benchmarks, over loaders.py (rows -> items) and formats.py (files -> rows)
world.py       the procedural world as a benchmark
items.py       one question with its truth; manifest.py: all of them as the manifest of all cells
cells.py       models x methods x budgets -> jobs
job.py         evaluate(): runs the cells, scores them, writes what was found
results.py     a cell's annotations joined with the truth, marked by scoring.py or by judge.py
summary.py     ... and summed up, with the intervals of intervals.py
tables.py      as Markdown; pictures.py and svg.py as pictures
kept.py        which frames were kept
bias.py        where frozen models look
memory.py      what captioners took at most
unverified.py  the README's table of what no public checkpoint has answered yet
"""
