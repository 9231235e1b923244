"""plan(): from a job to its price and its keep."""

from __future__ import annotations

from mlb_batch.cost.budget import Measure
from mlb_batch.cost.calibration import Calibration, load
from mlb_batch.cost.solve import Pricer
from mlb_batch.errors import BudgetError, RowError
from mlb_batch.planning.advice import Findings
from mlb_batch.planning.assembly import assembled
from mlb_batch.planning.frozen import thaw
from mlb_batch.planning.identity import key_of
from mlb_batch.planning.record import Plan
from mlb_batch.planning.setup import Setup, setup
from mlb_batch.planning.solving import Case, fewer, solve, telling
from mlb_batch.planning.survey import Layout, Survey, survey
from mlb_batch.source import Inspection, Prompt, videos
from mlb_batch.spec import JobSpec
from mlb_batch.vlm.preprocess import paired_recipe
from mlb_batch.vlm.prompts import Prompter
from mlb_batch.vlm.small_files import refuse_window, tokenizer_of


def plan(spec: JobSpec, replan: bool = False, inspection: Inspection | None = None) -> Plan:
    """Price the job and solve its budget; a schedule that an earlier run froze is used again unless `replan`."""
    means = setup(spec)
    refuse_window(means.checkpoint)
    device = load(means.checkpoint.revision, spec.model.device, spec.model.dtype)
    prompter = Prompter(means.checkpoint)
    _refuse_without_room(means, prompter)
    if means.pair:  # its small files: what is wrong with them is said before any captioner starts
        paired_recipe(means.pair)
        tokenizer_of(means.pair)
    case = _case(spec, means, _pricer(spec, means, device), prompter, inspection)
    key = key_of(spec, means)
    frozen = None if replan else thaw(spec, key)
    solved = frozen or solve(case)
    found = Findings(spec, means, case, fewer(case.clips, solved.frames))
    return assembled(found, device, key, solved, reused=frozen is not None)


def _refuse_without_room(means: Setup, prompter: Prompter) -> None:
    """Where not even a word could be asked. A longer prompt without room is its own row's error."""
    try:
        prompter.asked(means.method, "qa", "a")
    except RowError:
        raise BudgetError(
            "generate.max_new_tokens, prune.options.room: the larger one leaves no room in the model's context for a "
            "prompt and a frame; ask for shorter answers, or keep less free for them"
        ) from None


def pricer_of(spec: JobSpec, means: Setup) -> Pricer:
    """What prices a clip in the budget's own measure."""
    return _pricer(spec, means, load(means.checkpoint.revision, spec.model.device, spec.model.dtype))


def _pricer(spec: JobSpec, means: Setup, device: Calibration | None) -> Pricer:
    budget = spec.budget
    timed = device if budget.kind == "gpu_hours" else None
    if budget.kind == "gpu_hours" and timed is None:
        where = "" if spec.model.device == "auto" else f" on {spec.model.device}"
        raise BudgetError(
            f"budget.gpu_hours: {means.checkpoint.name} was never calibrated{where}; run `mlb-batch bench calibrate "
            "--job JOB.yaml` on what will run it, or give a ratio or pflops"
        )
    measure = Measure(budget.scope, budget.convention, spec.generate.max_new_tokens, timed)
    return Pricer(means.shape, means.method, measure, means.pair_shape)


def _case(spec: JobSpec, means: Setup, pricer: Pricer, prompter: Prompter, inspection: Inspection | None) -> Case:
    def length(prompt: Prompt) -> int:
        return len(prompter.asked(means.method, prompt.kind, prompt.text, prompt.choices))

    layout = Layout(spec.frames, spec.clips, means.shape.side, len(prompter.prefix), means.shape.trailer)

    def case(found: Survey) -> Case:
        return Case(spec.budget, pricer, found, spec.frames.count)

    found = survey(videos(spec, inspection), layout, length, lambda sample: telling(case(sample)))
    # A ratio is of what is answered: at the sampling's full count, broken videos would let all others keep more.
    return case(found.without_unreadable() if spec.budget.kind == "ratio" else found)
