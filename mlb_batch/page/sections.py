"""The page's text and figures as HTML, from numbers alone; whatever came from outside goes through `escaped`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlb_batch.amounts import amount, at_price, count, gpu_hours, hours, many, percent
from mlb_batch.cost.schedule import WHOLE
from mlb_batch.errors import RETRYABLE
from mlb_batch.page.charts import bar, ceiling, steps
from mlb_batch.page.escape import escaped
from mlb_batch.page.runs import Run, Spending, Step
from mlb_batch.progress import clock

PARTS = (("vision", "Vision"), ("prefill", "Prefill"), ("scoring", "Scoring"), ("generate", "Generation"))
Json = Mapping[str, Any]
# An error class, and what it means to a person.
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


def lead(numbers: Json) -> str:
    """The page in a few sentences."""
    sums = numbers["sums"]
    said = f"<strong>{many(numbers['annotations'], 'answer')}</strong> about {many(numbers['videos'], 'video')}"
    if sums["num_visual_tokens"]:
        said += f", from {percent(sums['num_kept_tokens'] / sums['num_visual_tokens'])} of the visual tokens"
    if sums["flops_vanilla"]:  # both with answers of the expected length: those that came may be shorter
        said += f", at <strong>{percent(sums['flops_planned'] / sums['flops_vanilla'])}</strong> of unpruned compute"
    return f"{said}. {_not_answered(numbers)}"


def _not_answered(numbers: Json) -> str:
    unresolved, unfinished = numbers["errors"]["unresolved"], numbers["unfinished_run"]
    said = f"Run {escaped(unfinished)} has not ended: more may come. " if unfinished else ""
    if not unresolved:
        return said or "Nothing is unresolved."
    kinds = len(numbers["errors"]["by_class"])
    verb = "ends" if unresolved == 1 else "end"
    return f"{said}{many(unresolved, 'further answer')} {verb} as errors of {many(kinds, 'kind')}."


def tiles(numbers: Json, spent: Spending | None, newest: Run | None) -> str:
    """`newest`: of the runs that left answers."""
    return f'<dl class="tiles">{"".join(_tiles(numbers, spent, newest))}</dl>'


def _tiles(numbers: Json, spent: Spending | None, newest: Run | None) -> Iterator[str]:
    sums, errors, last = numbers["sums"], numbers["errors"], numbers["last_run"] or {}
    told = ("executed", "planned", "vanilla")
    executed, planned, unpruned = (amount(sums[f"flops_{name}"], "FLOPs") for name in told)
    yield _tile("Answers", count(numbers["annotations"]), _counts(numbers["by_kind"]))
    yield _tile("Videos", count(numbers["videos"]), _counts(numbers["by_status"]))
    yield _tile("Compute", _with_unit(executed), f"{planned} planned, {unpruned} unpruned")
    if spent:
        limit, unit = spent.budget["limit"], spent.budget["unit"]
        of_whom = "by the newest run that spent any"
        yield _tile("Budget spent", percent(spent.paid / limit), f"of {amount(limit, unit)}, {of_whom}")
    if newest and "annotations_per_s" in newest.summary:
        waited = f"which waited for {escaped(newest.summary['starved_by'])}"
        rate = _with_unit(f"{newest.summary['annotations_per_s']:.3g} answers/s")
        yield _tile("Rate", rate, f"of the newest run with answers, {waited}")
    if last.get("gpu_hours"):
        yield _tile("Held", _with_unit(gpu_hours(last["gpu_hours"])), f"by the newest run{at_price(last['cost'])}")
    unresolved, failed = errors["unresolved"], many(errors["failed_attempts"], "failed attempt")
    yield _tile("Unresolved", count(unresolved), failed, "bad" if unresolved else "")


def _tile(name: str, value: str, more: str, css: str = "") -> str:
    return f'<div class="{css}"><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>'


def _with_unit(text: str) -> str:
    number, _, unit = text.partition(" ")
    return f'{number}<span class="unit">{unit}</span>'


def asked(spec: Json, text: str, plan: Json, numbers: Json, environment: Json) -> str:
    facts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _facts(spec, plan, numbers))
    prompts = "".join(_prompt(one) for one in spec.get("prompts") or ())
    packages = ", ".join(f"{name} {version}" for name, version in (environment.get("packages") or {}).items())
    made = f"<p class='hint'>Made with {escaped(packages)}.</p>" if packages else ""
    job = f"<details><summary>The job file</summary><pre tabindex='0'>{escaped(text, 20_000)}</pre>{made}</details>"
    return _section("asked", "What was asked", f'<dl class="facts">{facts}</dl><ul class="prompts">{prompts}</ul>{job}')


def _facts(spec: Json, plan: Json, numbers: Json) -> Iterator[tuple[str, str]]:
    source = spec.get("input") or {}
    yield "Input", escaped(source.get("manifest") or source.get("videos") or "")
    yield "Output", escaped(numbers["output"])
    if plan:
        about = "about " if plan["estimate"] else ""
        yield "Planned for", f"{many(plan['videos'], 'video')}, {about}{hours(plan['hours'])}"
        yield "Model", f"{escaped(plan['model'])} <small>({escaped(plan['revision'][:12])})</small>"
        yield "Frames", f"at most {count(plan['frames'])} a clip"
        select = "one selection for all prompts" if plan["select"] == "per_video" else "one selection a prompt"
        yield "Method", f"{escaped(plan['method'])}, {select}"
        yield "Tokens kept", f"{percent(plan['keep'] / WHOLE)} of the visual tokens"
        budget = plan["budget"]
        yield (
            "Budget",
            (
                f"{escaped(budget['kind']).replace('_', ' ')} {budget['amount']:g}, scope {escaped(budget['scope'])}, "
                f"{escaped(budget['convention'])} convention, {escaped(budget['allocation'])} allocation"
            ),
        )
    state = "current" if numbers["current"] == numbers["fingerprint"] else "not the current one"
    yield "Fingerprint", f"<code>{escaped(numbers['fingerprint'])}</code> ({state})"


def _prompt(prompt: Json) -> str:
    said = prompt.get("text") or f"from the column {prompt.get('column')}"
    choices = "".join(f' <span class="kind">{escaped(one, 100)}</span>' for one in prompt.get("choices") or ())
    return (f'<li><b>{escaped(prompt.get("id"))}</b><span class="kind">{escaped(prompt.get("kind"))}</span><br>'
            f"{escaped(said)}{choices}</li>")  # fmt: skip


def budget(numbers: Json, plan: Json, spent: Spending | None) -> str:
    """Budget against bill, by part: the plan's whole input beside the rows that are here."""
    sums = numbers["sums"]
    executed = {part: sums[f"flops_{part}"] for part, _ in PARTS}
    bills = [("Executed", "the answers that are here", executed)]
    if plan:
        whole = f"plan for the whole input, {plan['expected_new_tokens']} new tokens an answer"
        bills = [("Unpruned", whole, plan["vanilla"]), ("Planned", whole, plan["planned"]), *bills]
    most = max(sum(bill.values()) for _, _, bill in bills)
    lines = [_bill_bar(name, what, bill, most) for name, what, bill in bills]
    meter = "" if not spent else _meter(spent)
    note = (
        "<p class='hint'>Planned for the answers that are here, with generation at its expected length: "
        f"{amount(sums['flops_planned'], 'FLOPs')}. Unpruned, and as long, they would cost "
        f"{amount(sums['flops_vanilla'], 'FLOPs')}. Failed attempts are in no bar. In the papers' measure: "
        f"{amount(sums['macs_paper_executed'], 'multiply-adds')} of "
        f"{amount(sums['macs_paper_vanilla'], 'multiply-adds')}.</p>"
    )
    return _section("budget", "Budget and bill",
                    f'{meter}<ul class="bars">{"".join(lines)}</ul>{_bill_table(bills)}{note}')  # fmt: skip


def _meter(spent: Spending) -> str:
    what = "prefill and scoring" if spent.budget["scope"] == "llm" else "all parts"
    if spent.budget["convention"] == "paper":
        what = "the papers' multiply-adds"
    paid, limit, unit = spent.paid, spent.budget["limit"], spent.budget["unit"]
    length = max(paid, limit)
    return (
        '<ul class="bars"><li><div class="name"><span><strong>The budget</strong> '
        f"of run {escaped(spent.run_id, 60)} ({what})</span><span>{amount(paid, unit)} of {amount(limit, unit)}, "
        f"{percent(paid / limit)}</span></div>{bar([('used', paid)], length + length // 50, limit)}</li></ul>"
    )


def _bill_bar(name: str, what: str, bill: Json, longest: int) -> str:
    parts = [(part, bill[part]) for part, _ in PARTS]
    total = sum(amount for _, amount in parts)
    return (f'<li><div class="name"><span><strong>{name}</strong> ({what})</span>'
            f"<span>{amount(total, 'FLOPs')}</span></div>{bar(parts, longest)}</li>")  # fmt: skip


def _bill_table(bills: Sequence[tuple[str, str, Json]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name, _, _ in bills)
    body = "".join(
        f'<tr><th scope="row"><span class="swatch {part}"></span>{name}</th>'
        + "".join(f"<td>{amount(bill[part], 'FLOPs')}</td>" for _, _, bill in bills) + "</tr>"
        for part, name in PARTS
    )  # fmt: skip
    total = "".join(f"<td>{amount(sum(bill[part] for part, _ in PARTS), 'FLOPs')}</td>" for _, _, bill in bills)
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="The bill by part"><table>'
            f'<thead><tr><th scope="col">Part</th>{head}</tr></thead><tbody>{body}'
            f'<tr class="total"><th scope="row">All</th>{total}</tr></tbody></table></div>')  # fmt: skip


def throughput(runs: Sequence[Run], newest: Run | None, values: Sequence[Step]) -> str:
    plot = _plot(newest, values) if newest and values else "<p class='note'>No committed rows to plot yet.</p>"
    body = "".join(_run_row(run) for run in runs)
    table = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Runs"><table><thead><tr><th scope="col">Run</th>'
        '<th scope="col">State</th><th scope="col">Took</th><th scope="col">Annotated</th><th scope="col">Done before'
        '</th><th scope="col">Failed</th><th scope="col">Rate</th><th scope="col">Model busy</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
    return _section("throughput", "Throughput over time", plot + (table if runs else ""))


def _plot(newest: Run, values: Sequence[Step]) -> str:
    top, end_s = ceiling(max(step.per_minute for step in values)), values[-1].until_s
    said = f"Answers a minute in run {escaped(newest.run_id)}, from one commit to the next, start-up included"
    return (
        f'<figure class="plot"><figcaption>{said}</figcaption><div class="y"><span>{top:,g}</span>'
        f'<span>{top / 2:,g}</span><span>0</span></div>{steps(values)}<div class="x"><span>0:00</span>'
        f"<span>{clock(end_s / 2)}</span><span>{clock(end_s)}</span></div></figure>"
    )


def _run_row(run: Run) -> str:
    told = run.summary or run.progress
    state = told.get("stopped") or run.progress.get("state") or ("ended" if run.summary else "unknown")
    cells = [
        escaped(state, 40),
        clock(told["wall_s"]) if "wall_s" in told else "",
        count(told.get("annotated", 0)),
        count(told.get("skipped_done", 0)),
        count(told.get("errors", 0)),
        f"{told['annotations_per_s']:.3g} / s" if "annotations_per_s" in told else "",
        percent(told["gpu_busy_share"]) if "gpu_busy_share" in told else "",
    ]
    return f'<tr><th scope="row">{escaped(run.run_id, 60)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def errors(numbers: Json) -> str:
    by_class = numbers["errors"]["by_class"]
    if not by_class:
        return _section("errors", "Errors", "<p>None: every annotation that was expected is here.</p>")
    most = max(one["count"] for one in by_class.values())
    classes = "".join(_error_class(name, one, most) for name, one in by_class.items())
    return _section("errors", "Errors", f'<ul class="errors">{classes}</ul>')


def _error_class(name: str, one: Json, most: int) -> str:
    lasts = "It stays until the input changes, or a run tries again with <code>--set retry.errors=true</code>."
    again = "It may pass: other runs try, up to retry.attempts." if RETRYABLE[name] else lasts
    examples = "".join(
        f"<li><code>{escaped(example['uri'], 400)}</code>{escaped(example['message'], 400)}</li>"
        for example in one["examples"]
    )
    return (
        f"<li><h3><span>{escaped(name)}</span><span>{many(one['count'], 'answer')}</span></h3>"
        f"{bar([('failed', one['count'])], most, thin=True)}<p>{MEANING[name]} {again}</p>"
        f"<details><summary>{many(len(one['examples']), 'example')}</summary><ul>{examples}</ul></details></li>"
    )


def rows(numbers: Json) -> str:
    lines = escaped(numbers["how_to_read"])
    text = f"<p>One row an answer, in Parquet; these lines read them.</p><pre tabindex='0'>{lines}</pre>"
    return _section("rows", "Reading the rows", text)


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{body}</section>'


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{escaped(name, 40)} {number:,}" for name, number in counts.items())
