"""The engine: pruned inference on transformers' own modules, exact and batched. Knows no Ray.

captioner.py   frames in, text out: all of what follows as one object
values.py      what goes into it and comes out

checkpoint.py  a model's id -> its files, and the revision that says which; load.py: files -> weights on a device
hub.py           ... of a hub id, downloaded
small_files.py what transformers makes of the small ones, or says of damaged ones: config, generation config, tokenizer
preprocess.py  frames as the vision tower takes them, by the checkpoint's own processor config
prompts.py     prompts as the checkpoint's chat template has them; choices.py: options, and which one an answer names

prepare.py     a clip and its prompts -> what prefill takes
vision.py        visual tokens; paired.py: what the paired model sees in the frames
inputs.py        ... all of it as one value
prefill.py     run to the next cut, score, pick, gather, go on
scan.py          ... and in two stages, segments first (SegAttn)
trees.py         the packed row: what prompts share, and the prompts
layers.py        one layer over it; decoder.py: transformers' modules, called one by one
score.py         what text pays to visual tokens
selection.py     what was kept, as data, for the table and for replay
sequence.py    what prefill leaves of each prompt
generate.py    ... goes on to the last token, in rooms.py, the pool of keys and values
replay.py        on a GPU as one recorded graph

attention.py   without padding; rope.py: positions
moving.py      host to device without a wait; memory.py: what is left there
meter.py       counts what runs; billing.py: splits it over the answers
bias.py        where frozen models look: for `evaluate`, not for a job
"""
