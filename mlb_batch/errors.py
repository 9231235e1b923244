"""The tree of errors, and the table of error classes that a row can end with.

MlbBatchError
├── UserError            exit 2: the user can mend it; the message says how, no traceback is shown
│   ├── SpecError        the job file: unknown key, wrong type, two budgets
│   ├── InputError       the manifest or the videos' place: missing, empty, duplicate ids
│   ├── ModelError       the model: unknown architecture, pickled weights, no such folder
│   ├── BudgetError      the budget: below the floor, over what the job can cost
│   ├── ClusterError     the cluster: the job asks for more than it has, or it can't be joined so
│   └── OutputError      the output: held by another run, written by another schema
├── JobError             exit 1: the job itself failed (storage gone, credentials expired); run it again to resume
└── RowError             one annotation failed; it becomes a row of errors/ and the job goes on
"""

from __future__ import annotations


class MlbBatchError(Exception):
    """Everything that this project raises on purpose."""


class UserError(MlbBatchError):
    """The user's mistake: one clear line with what to do."""


class SpecError(UserError):
    pass


class InputError(UserError):
    pass


class ModelError(UserError):
    pass


class BudgetError(UserError):
    pass


class ClusterError(UserError):
    pass


class OutputError(UserError):
    pass


class JobError(MlbBatchError):
    """The job failed, not a row; what was committed stays, and the same command resumes."""


# Whether another attempt may end differently. Keys are the only values that errors/error_class takes.
RETRYABLE: dict[str, bool] = {
    "not_found": False,
    "forbidden": False,
    "empty": False,
    "not_video": False,
    "no_video_stream": False,
    "unsupported_codec": False,
    "encrypted": False,
    "corrupt": False,
    "truncated": False,
    "too_large": False,
    "too_long": False,
    "changed_during_read": True,
    "timeout": True,
    "decoder_crash": False,
    "bad_prompt": False,
    "model_error": True,
    "out_of_memory": True,
    "storage": True,
}


class RowError(MlbBatchError):
    """One annotation's failure: a stable class, a message for a person, and whether to try again."""

    def __init__(self, error_class: str, message: str, retryable: bool | None = None) -> None:
        """`retryable`: where this one differs from its class."""
        assert error_class in RETRYABLE, error_class
        super().__init__(f"{error_class}: {message}")
        self.error_class = error_class
        self.message = message
        self.retryable = RETRYABLE[error_class] if retryable is None else retryable

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str, bool]]:
        return type(self), (self.error_class, self.message, self.retryable)
