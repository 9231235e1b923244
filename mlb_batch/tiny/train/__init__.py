"""Training of the embedded models from nothing: `python -m mlb_batch.tiny.train video|paired|image`.

video.py, paired.py, image.py   each model's lessons, stage by stage
loop.py       a step number -> a loss, with log, checkpoints, and a resume that changes no bit
export.py     a trained model -> its folder in the package, with its card

frames.py     the towers' first lesson: single frames
reading.py    the language model's first: texts; grow.py: from shallow to deep
lessons.py    what is said about a clip; drills.py: each step of an answer by itself
drawing.py    which clips a step shows and what it asks; ahead.py: drawn by other processes meanwhile
notes.py      what visual tokens should know half way up; thin.py: lessons with some of them gone
packing.py    clips and questions as one batch; branches.py: the attention that it needs
answers.py    right or wrong, by kind of question
pixels.py     frames as the towers take them
"""
