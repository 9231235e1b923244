"""A byte-level tokenizer made in code: one token a known word, one a byte for all else; any text survives."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlb_batch.tiny.words import vocabulary

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}<video>\n{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% elif message['role'] == 'assistant' %} ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% elif message['role'] == 'system' %} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def _byte_level(special: list[str]) -> Tokenizer:
    """Bytes first (ids 0..255), then the words, then the special tokens; no merges: a word is known whole or spelt."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [word.replace(" ", "Ġ") for word in vocabulary()]
    ids = {token: index for index, token in enumerate([*alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def video_tokenizer() -> PreTrainedTokenizerFast:
    """ChatML, as the OneVision family has it: `<|im_end|>` ends an answer."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(special),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def image_tokenizer() -> PreTrainedTokenizerFast:
    """USER / ASSISTANT turns, as the LLaVA-1.6 family has them: `</s>` ends an answer."""
    special = ["<pad>", "<s>", "</s>", "<image>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(special),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = VICUNA
    return tokenizer


def paired_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """For the paired text tower: padded to its fixed length, `</s>` last, whose state is the text's."""
    from tokenizers.processors import TemplateProcessing

    backend = _byte_level(["<pad>", "</s>"])
    end = ("</s>", backend.token_to_id("</s>"))
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[end])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=max_length,
        model_input_names=["input_ids"],
        clean_up_tokenization_spaces=False,
    )
