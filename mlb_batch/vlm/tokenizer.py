"""A checkpoint's tokenizer, or one line on what is wrong with it."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mlb_batch.vlm.checkpoint import Checkpoint, read_json
from mlb_batch.vlm.refused import or_refused


def tokenizer_of(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    for path in checkpoint.folder.glob("tokenizer*.json"):
        read_json(path)

    def loaded() -> PreTrainedTokenizerBase:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            checkpoint.folder, trust_remote_code=False, local_files_only=True
        )
        return found

    return or_refused(checkpoint, "its tokenizer can't be loaded", "copy the checkpoint again", loaded)
