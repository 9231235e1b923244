"""Text from outside made harmless, and what an error class means to a person."""

from __future__ import annotations

import html
import re

# Control characters (but for line breaks), lone surrogates, and whatever turns the direction of the text around it.
_HIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

MEANING = {
    "not_found": "There is no file at this address. Check the manifest, or wait until the upload is complete.",
    "forbidden": "The address may not be opened: it lies outside input.allow, or the credentials do not reach it.",
    "empty": "The file has no bytes. Upload it again.",
    "not_video": "The file is something else than a video.",
    "no_video_stream": "The file holds sound or a cover picture only.",
    "unsupported_codec": "This build of FFmpeg cannot read the codec. Convert the file.",
    "encrypted": "The video is protected. Supply an unprotected copy.",
    "corrupt": "The video's data are damaged beyond reading.",
    "truncated": "The file ends before the frames that were wanted: a broken upload, or a start behind its end.",
    "too_large": "The pictures have more pixels than are read (8K).",
    "too_long": "The video would be cut into more clips than are made of one. Make clips.every_s larger.",
    "changed_during_read": "The file was overwritten while it was read. The next run takes the new one.",
    "timeout": "Reading took longer than limits.video_s.",
    "decoder_crash": "The codec crashed on this video. It was kept apart from the others.",
    "bad_prompt": "The prompt is empty, too long, or lacks a column.",
    "model_error": "The model failed on this clip.",
    "out_of_memory": "This clip needed more memory than there was.",
    "storage": "The storage did not answer well.",
}


def visible(text: str, most_chars: int) -> str:
    """What a reader may see of a text: nothing hidden, no escape sequence, no endless text."""
    return _HIDDEN.sub(lambda sign: ascii(sign[0])[1:-1], text[:most_chars].replace("\r\n", "\n").replace("\t", " "))


def escaped(value: object, most_chars: int = 2_000) -> str:
    """Visible text for HTML, in an attribute too."""
    text = str(value)
    return html.escape(visible(text, most_chars)) + ("…" if len(text) > most_chars else "")
