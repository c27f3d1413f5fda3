"""A report as one HTML page: self-contained, without scripts, in English and Chinese, safe against what it shows.

Every text of a user passes `clean`. The page also forbids scripts and everything from elsewhere by its own policy, so
that a mistake here would still run nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2kit.scores import plots
from gpt2kit.scores.markup import both, cell, clean, folded, heading, marked, table
from gpt2kit.scores.names import describe
from gpt2kit.scores.notes import chinese
from gpt2kit.scores.report import TEXT
from gpt2kit.scores.result import FRACTION, POINTS, Score, Scores
from gpt2kit.scores.style import STYLE

if TYPE_CHECKING:
    from gpt2kit.scores.classification import Confusion
    from gpt2kit.scores.comparison import Comparison
    from gpt2kit.scores.report import Beside, Example, Report

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
CARDS = 4
HEADLINES = (  # metrics for the cards, in this order
    "accuracy", "subset_accuracy", "macro_f1", "auroc", "calibration_error", "exact_match", "token_f1", "bleu", "chrf",
    "rougeL", "rouge2", "detection_f1", "correction_f1", "false_positive_rate", "edit_f0.5", "mrr", "hits@1", "ndcg@10",
    "perplexity", "bits_per_byte", "bits_per_character", "distinct_2", "self_bleu", "rep_4",
)  # fmt: skip
MATRIX = 20  # classes in the table of confusions; the rarer ones are summed up
CONFUSIONS = 10
SHARE_SHOWN = 0.05  # of a row of that table
TASKS = {
    "write": "写作", "continue": "续写", "classify": "分类", "answer": "问答", "summarise": "摘要", "translate": "翻译",
    "chat": "对话", "correct": "纠错", "edit": "编辑", "rank": "排序", "embed": "嵌入", TEXT: "文本",
}  # fmt: skip
VALUE, INTERVAL, DIFFERENCE = ("value", "值"), ("interval", "区间"), ("difference", "差值")
OURS, METRIC, CLASS = ("this model", "本模型"), ("metric", "指标"), ("class", "类别")
RATES = {"precision": ("precision", "精确率"), "recall": ("recall", "召回率"), "f1": ("F1", "F1")}


def render(report: Report, language: str = "en") -> str:
    """The whole page. `language`, "en" or "zh", is the one that it opens in."""
    programs = both("the same figures for programs: report.json", "供程序读取的同样数据：report.json")
    parts = [
        _header(report),
        _cards(report.scores),
        _notes(report.scores.notes),
        _all_scores(report.scores),
        *(_beside(report.scores, other) for other in report.beside),
        _plots(report),
        _confusion(report.confusion),
        _per_class(report.per_class),
        _examples(report),
        _facts("How it was measured", "测量方法", report.scores.to_dict()["protocol"]),
        _facts("Settings", "设置", report.settings),
        _facts("Origin", "来源", report.lineage),
        f"<footer>gpt2kit · {programs}</footer>",
    ]
    checked = {"en": "", "zh": ""} | {"zh" if language == "zh" else "en": " checked"}
    return (
        f'<!doctype html>\n<html lang="{"zh-CN" if language == "zh" else "en"}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{clean(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<input class="pick" type="radio" name="language" id="en" aria-label="English"{checked["en"]}>'
        f'<input class="pick" type="radio" name="language" id="zh" aria-label="中文"{checked["zh"]}>\n'
        '<main class="wrap">\n' + "\n".join(part for part in parts if part) + "\n</main>\n</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    said = []
    if report.task:
        said.append(both(clean(report.task), TASKS.get(report.task, clean(report.task))))
    for score in report.scores.items[:1]:
        tokens = score.protocol.get("counted") == "tokens"
        said.append(both(f"{score.n:,} {'tokens' if tokens else 'examples'}",
                         f"{score.n:,} 个{'词元' if tokens else '样本'}"))  # fmt: skip
    return (
        f'<header><h1>{clean(report.title)}</h1><div class="languages"><label for="en">English</label>'
        f'<label for="zh">中文</label></div></header>\n<p class="muted">{" · ".join(said)}</p>'
    )


def decimals(score: Score) -> int:
    """3 for fractions, 1 for points, 2 for the rest; one more where the interval is narrower than that shows."""
    usual = {FRACTION: 3, POINTS: 1}.get(score.unit, 2)
    width = 0.0 if score.low is None or score.high is None else score.high - score.low
    return usual + (0 < width < 2 * 10.0**-usual)


def _value(score: Score) -> str:
    return f"{score.value:.{decimals(score)}f}"


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return both("no interval", "无区间")
    if score.protocol.get("interval") == "none":
        return both("no spread", "无离散")
    d = decimals(score)
    return f"{score.low:.{d}f} – {score.high:.{d}f}"


def _band(score: Score) -> str:
    """The interval on the metric's whole range, for metrics that have one; the unit of the others."""
    top = {FRACTION: 1.0, POINTS: 100.0}.get(score.unit)
    if top is None:
        return f'<small class="unit">{clean(score.unit)}</small>'
    low, high, value = (100 * min(max((score.value if x is None else x) / top, 0), 1)
                        for x in (score.low, score.high, score.value))  # fmt: skip
    return (
        f'<div class="band" aria-hidden="true"><i style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        f'<u style="left:{value:.2f}%"></u></div>'
    )


def _title(name: str) -> str:
    return both(*(clean(text) for text in describe(name).title))


def _meaning(name: str) -> str:
    metric = describe(name)
    english, chinese = (clean(text) for text in metric.meaning)
    if not metric.less_is_better:
        return both(english, chinese)
    return both(f"{english} (↓ less is better)", f"{chinese}（↓ 越低越好）")


def _cards(scores: Scores) -> str:
    first = [scores[name] for name in HEADLINES if name in scores]
    first += [score for score in scores if score not in first]
    cards = []
    for score in first[:CARDS]:
        drawn = score.low is not None and score.protocol.get("interval") != "none"
        sure = f"{100 * float(score.protocol.get('confidence', 0.95)):g} %: " if drawn else ""
        less = ' <span class="muted">↓</span>' if describe(score.name).less_is_better else ""
        cards.append(
            f'<div class="card"><span class="name">{_title(score.name)}{less}</span><b>{_value(score)}</b>'
            f"{_band(score)}<small>{sure}{_interval(score)}</small></div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _notes(notes: Sequence[str]) -> str:
    said = "".join(f"<p>{both(clean(note), clean(chinese(note)))}</p>" for note in notes)
    return f'<div class="notes">{said}</div>' if notes else ""


def _all_scores(scores: Scores) -> str:
    if len(scores) <= CARDS:
        return ""
    rows = [
        f"<tr><td>{_title(s.name)}<br><small>{_meaning(s.name)}</small></td>"
        f'<td class="n">{_value(s)}</td><td class="n low">{_interval(s)}</td><td class="bar">{_band(s)}</td></tr>'
        for s in scores
    ]
    columns = (METRIC, VALUE, INTERVAL, ("on its range", "所在范围"))
    return heading("All scores", "全部得分") + table(columns, rows, "full scores")


def _beside(scores: Scores, other: Beside) -> str:
    name = clean(other.name)
    compared = {found.metric: found for found in other.comparisons}
    rows = []
    for score in other.scores:
        found = compared.get(score.name)
        ours = f"{scores[score.name].value:.{decimals(score)}f}" if score.name in scores else "–"
        cells = ((ours, OURS), (_value(score), (name, name)), (_difference(found), DIFFERENCE), (_p(found), ("p", "p")))
        rows.append(f"<tr><td>{_title(score.name)}</td>{''.join(cell(*each) for each in cells)}</tr>")
    said = both(
        "The difference is this model less the other. Intervals and p are paired: both answered the same examples.",
        "差值为本模型减去对方。区间与 p 值均为配对计算：两者回答同样的样本。",
    )
    columns = (METRIC, OURS, (name, name), DIFFERENCE, ("p", "p"))
    notes = tuple(f"{found.metric}: {note}" for found in other.comparisons for note in found.notes)
    notes += tuple(other.refused.values())
    title = heading(f"Beside {name}", f"与 {name} 相比")
    return f'{title}<p class="muted">{said}</p>{table(columns, rows)}{_notes(notes)}'


def _difference(found: Comparison | None) -> str:
    """This model's value less the other's; coloured where the interval leaves out 0."""
    if found is None:
        return "–"
    d = 4 if found.unit == FRACTION else 2
    text = f"{found.difference:+.{d}f}"
    if found.low is None or found.high is None:
        return text
    if found.low == found.high:
        return f"{text} <small>({both('no spread', '无离散')})</small>"
    sure = found.low > 0 or found.high < 0
    better = (found.difference > 0) != describe(found.metric).less_is_better
    kind = ("better" if better else "worse") if sure else "muted"
    return f'<span class="{kind}">{text}</span> <small>({found.low:+.{d}f} … {found.high:+.{d}f})</small>'


def _p(found: Comparison | None) -> str:
    if found is None or found.p is None:
        return "–"
    return "&lt; 0.001" if found.p < 0.001 else f"{found.p:.3f}"


def _plots(report: Report) -> str:
    figures = []
    if report.reliability:
        english = (
            "On the dashed line, answers of 80 % confidence are right 80 % of the time. Below it the model is too sure "
            "of itself. The bars show how often it has which confidence."
        )
        chinese = (
            "落在虚线上表示：置信度 80 % 的回答确有 80 % 正确；低于虚线说明模型过于自信。下方柱形为各置信度的样本占比。"
        )
        figures.append((plots.calibration(report.reliability), ("Calibration", "校准"), (english, chinese)))
    if report.lengths:
        name = report.length_score or report.example_score
        title = [clean(text) for text in describe(name).title] if name else ["the score", "得分"]
        english = f"Groups of about as many examples each: the mean of {title[0]}, its interval, the range of lengths."
        chinese = f"每组样本数大致相等：点为{title[1]}的均值，色块的高为区间、宽为长度范围。"
        drawn = plots.length_against_score(report.lengths, name)
        figures.append((drawn, ("Length against score", "长度与得分"), (english, chinese)))
    if report.losses:
        english = "Validation loss that rises while training loss falls means learning by heart."
        chinese = "训练损失下降而验证损失上升，说明模型在死记硬背。"
        figures.append((plots.loss_curve(report.losses), ("Loss while training", "训练中的损失"), (english, chinese)))
    if not figures:
        return ""
    drawn = "".join(
        f"<figure>{svg}<figcaption><b>{both(*name)}.</b> {both(*said)}</figcaption></figure>"
        for svg, name, said in figures
    )
    return heading("Plots", "图表") + f'<div class="plots">{drawn}</div>'


def _confusion(found: Confusion | None) -> str:
    if found is None:
        return ""
    labels, counts = _largest(found)
    totals = counts.sum(1)
    rows = []
    for i, label in enumerate(labels):
        cells = "".join(_count(int(n), int(totals[i]), i == j) for j, n in enumerate(counts[i]))
        rows.append(f'<tr><th scope="row">{label}</th>{cells}<td class="muted">{totals[i]:,}</td></tr>')
    head = "".join(f'<th scope="col">{label}</th>' for label in labels)
    said = both("Rows are the true class, columns what the model said; per cent of the row.",
                "行为真实类别，列为模型的判断；百分数按行计算。")  # fmt: skip
    return (
        f'{heading("Confusion matrix", "混淆矩阵")}<p class="muted">{said}</p><div class="scroll" tabindex="0">'
        f'<table class="matrix"><thead><tr><th></th>{head}<th>{both("all", "合计")}</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{_most_confused(found)}"
    )


def _count(n: int, total: int, right: bool) -> str:
    if n == 0:
        return '<td class="muted">·</td>'
    share = n / total
    small = f"<small>{100 * share:.0f} %</small>" if share >= SHARE_SHOWN else ""
    colour = "--rgb" if right else "--warm-rgb"
    return f'<td style="background:rgb(var({colour})/{0.6 * share:.2f})">{n:,}{small}</td>'


def _largest(found: Confusion) -> tuple[list[str], Any]:
    """The classes with the most examples, and the rest as one."""
    labels, counts = [clean(label) for label in found.labels], np.asarray(found.counts)
    if len(labels) <= MATRIX:
        return labels, counts
    order = np.argsort(-(counts.sum(0) + counts.sum(1)), kind="stable")
    kept, rest = sorted(order[: MATRIX - 1].tolist()), order[MATRIX - 1 :].tolist()
    groups: list[list[int]] = [*([i] for i in kept), rest]
    merged = np.array([[counts[a][:, b].sum() for b in groups] for a in groups])
    return [*(labels[i] for i in kept), both(f"{len(rest)} others", f"其余 {len(rest)} 类")], merged


def _most_confused(found: Confusion) -> str:
    counts = np.asarray(found.counts)
    wrong = [(int(counts[i, j]), int(i), int(j)) for i, j in zip(*np.nonzero(counts), strict=True) if i != j]
    if len(found.labels) < 3 or not wrong:
        return ""
    wrong.sort(key=lambda row: (-row[0], row[1], row[2]))
    items = [
        f'<tr><td>{clean(found.labels[i])} <span class="muted">→</span> {clean(found.labels[j])}</td>'
        f'<td class="n">{n:,}</td></tr>'
        for n, i, j in wrong[:CONFUSIONS]
    ]
    columns = (("confused most often: true → said", "最常混淆：真实 → 判为"), ("times", "次数"))
    return table(columns, items, "short")


def _per_class(found: Mapping[str, Scores]) -> str:
    if not found:
        return ""
    rows = []
    for label, scores in found.items():
        cells = "".join(
            cell(f"{_value(scores[name])} <small>{_interval(scores[name])}</small>" if name in scores else "–", title)
            for name, title in RATES.items()
        )
        rows.append(f"<tr><td>{clean(label)}</td>{cells}</tr>")
    return heading("Each class", "各类别") + table((CLASS, *RATES.values()), rows)


def _examples(report: Report) -> str:
    if not report.examples:
        return ""
    said = both("Worst first.", "从最差的开始。")
    if report.diff:
        said += " " + both(
            'Marked in the answer: <mark class="extra">what the reference does not have</mark>; '
            'in the reference: <mark class="missing">what the answer lacks</mark>.',
            '回答中标出<mark class="extra">参考里没有的</mark>，参考中标出<mark class="missing">回答里缺少的</mark>。',
        )
    cards = "".join(_example(i, example, report) for i, example in enumerate(report.examples, 1))
    return heading("Worst examples", "最差的例子") + f'<p class="muted">{said}</p>{cards}'


def _example(number: int, example: Example, report: Report) -> str:
    texts = marked if report.diff else lambda gold, predicted: (folded(gold), folded(predicted))
    gold, predicted = texts(example.gold, example.predicted)
    name = _title(report.example_score) if report.example_score else both("score", "得分")
    rows = [(both("input", "输入"), folded(example.input))]
    if report.task != TEXT:
        rows += [(both("reference", "参考"), gold), (both("answer", "回答"), predicted)]
    body = "".join(f'<dt>{title}</dt><dd dir="auto">{text}</dd>' for title, text in rows)
    return (
        f'<div class="example"><div class="head"><span>{number}</span><span>{name} {example.score:.3g}</span></div>'
        f"<dl>{body}</dl></div>"
    )


def _facts(english: str, chinese: str, values: Mapping[str, Any]) -> str:
    """Nested settings as a folded table: optimiser.rate 0.001."""
    rows = "".join(f"<tr><td>{clean(name)}</td><td>{clean(_plain(value))}</td></tr>" for name, value in _flat(values))
    if not rows:
        return ""
    return f'<details><summary>{heading(english, chinese)}</summary><table class="facts full">{rows}</table></details>'


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value, 1):
            yield from _flat(item, f"{name}.{index}" if name else str(index))
    else:
        yield name, value


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
