"""`mlb-batch bench`: the project beside its yardsticks, in turn and in one process; figures are ratios.

calibrate.py   what the device does a second with a job's model: for `plan`, and budgets in gpu_hours
read.py        frames a second of a core, and seconds from storage (stored.py); loops.py: the other ways to read them
vision.py      frames to visual tokens
prefill.py     frames to the first token
generate.py    caches to the last token
captioner.py   frames to text, without Ray
pipeline.py    a job with Ray against the captioner without it
scale.py       many rows and captioners; simulated.py: a captioner that only takes time

rounds.py, race.py   contenders in turn, each in its best batch; figures.py: what is made of their seconds
shapes.py, bed.py    named shapes, and weights that both sides run
ours.py, yardstick.py   both sides, step by step
ceilings.py, machine.py   what the device can at best, and what it is
options.py, suite.py, run.py   what a user may say, and the benchmarks by their names

A benchmark stands on both sides of the walls: it imports torch and transformers to hold the engine against transformers
itself, PyAV for the plain loop that reading is held against (loops.py alone), and ray to run a chain without a model
(scale.py alone). Nothing in the project imports it but the command line.
"""
