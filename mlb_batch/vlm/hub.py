"""A model's files from the Hugging Face hub, kept once a machine, and what a download that fails means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlb_batch.errors import JobError, MlbBatchError, ModelError
from mlb_batch.storage_errors import one_line, status_of

_SMALL = ["*.json", "*.jinja", "*.model", "*.txt"]
# Weights that carry no code. In folders of their own lie other programs' forms of the same (original/).
_WEIGHTS, _OTHER_FORMS = ["*.safetensors"], ["*/*.safetensors"]


def snapshot(id: str, revision: str, look: Callable[[Path], object]) -> Path:
    """The folder of the commit that `revision` names now, which names it too. `look` sees it while it holds the small
    files only: what it raises costs nobody the weights.
    """
    folder = _fetched(id, revision, _SMALL, begun=False)
    look(folder)
    return _fetched(id, folder.name, _WEIGHTS, begun=True)


def _fetched(id: str, revision: str, wanted: list[str], begun: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(id, revision=revision, allow_patterns=wanted, ignore_patterns=_OTHER_FORMS))
    except Exception as error:  # the hub's clients raise what their transports do
        raise _failed(id, error, begun) from error


def _failed(id: str, error: Exception, begun: bool) -> MlbBatchError:
    """JobError where it may pass. Where no hub can be reached at first, a name that is no folder is as likely."""
    from huggingface_hub.errors import HFValidationError

    reason = one_line(error)
    if isinstance(error, OSError) and error.errno is not None:  # this machine's, not the hub's
        return ModelError(f"{id!r} can't be kept here ({reason}); set HF_HOME to a folder that can be written")
    said = f"{id!r} is no folder here, and the hub did not give it: {reason}"
    status = status_of(error)
    if status is None:
        may_pass = begun or not isinstance(error, OSError | HFValidationError)  # the second: it is no hub id
    else:
        may_pass = status == 429 or status >= 500
    return JobError(f"{said}; run the same command again to resume") if may_pass else ModelError(said)
