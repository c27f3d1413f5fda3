"""Every metric's name: its title, what it says in one sentence, whether less is better. In English and Chinese."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Metric:
    """How a metric is shown. `title` and `meaning` are (English, Chinese)."""

    title: tuple[str, str]
    meaning: tuple[str, str]
    less_is_better: bool = False


# A pattern of names: title and meaning in English, title and meaning in Chinese; \1 is what its group matched.
# fmt: off
_METRICS: dict[str, tuple[str, str, str, str]] = {
    "accuracy": (
        "Accuracy", "share of examples that are right",
        "准确率", "答对的样本所占比例"),
    "subset_accuracy": (
        "Subset accuracy", "share of examples with all labels right",
        "子集准确率", "全部标签都对的样本所占比例"),
    "(macro|micro)_precision": (
        r"Precision, \1", "of what was called a class, how much is",
        r"精确率（\1）", "判为某类的样本中真正属于该类的比例"),
    "(macro|micro)_recall": (
        r"Recall, \1", "of what is in a class, how much was found",
        r"召回率（\1）", "某类样本中被找出的比例"),
    "(macro|micro)_f1": (
        r"F1, \1", "harmonic mean of precision and recall",
        r"F1（\1）", "精确率与召回率的调和平均"),
    "auroc": (
        "AUROC", "chance that a true example is ranked above a false one",
        "AUROC", "正例得分高于反例的概率"),
    "calibration_error": (
        "Calibration error", "mean gap between confidence and accuracy",
        "校准误差", "置信度与准确率之差的平均"),
    "gold_probability": (
        "Probability of the right label", "what the model gave the right label of an example",
        "正确标签的概率", "模型给样本正确标签的概率"),
    "exact_match": (
        "Exact match", "share of answers equal to a reference",
        "完全匹配", "与参考答案一致的比例"),
    "token_f1": (
        "Token F1", "overlap of answer and reference",
        "词元 F1", "答案与参考答案的重合度"),
    "(exact_match|token_f1)_answerable": (
        r"\1, answerable", "only questions that have an answer",
        r"\1（有答案）", "只计有答案的问题"),
    "(exact_match|token_f1)_unanswerable": (
        r"\1, unanswerable", "only questions without an answer: did it abstain?",
        r"\1（无答案）", "只计无答案的问题：是否拒答"),
    "bleu": (
        "BLEU", "n-grams shared with the reference",
        "BLEU", "与参考共有的 n 元组"),
    "chrf": (
        "chrF", "character n-grams shared with the reference",
        "chrF", "与参考共有的字符 n 元组"),
    r"rouge(\d)": (
        r"ROUGE-\1", r"\1-grams shared with the reference",
        r"ROUGE-\1", r"与参考共有的 \1 元组"),
    "rouge(Lsum|L)": (
        r"ROUGE-\1", "longest common subsequence with the reference",
        r"ROUGE-\1", "与参考的最长公共子序列"),
    r"distinct_(\d)": (
        r"distinct-\1", r"distinct \1-grams among all \1-grams",
        r"distinct-\1", r"不重复的 \1 元组所占比例"),
    "self_bleu": (
        "Self-BLEU", "how much the texts resemble each other",
        "self-BLEU", "各文本彼此相似的程度"),
    r"rep_(\d)": (
        r"rep-\1", r"repeated \1-grams within a text",
        r"rep-\1", r"文内重复的 \1 元组所占比例"),
    "fluency": (
        "Fluency", "bits that another model needs for a character of the answers",
        "流畅度", "另一模型为回答的每个字符所需的比特数"),
    "fluency_of_references": (
        "Fluency of the references", "bits that another model needs for a character of the references",
        "参考答案的流畅度", "另一模型为参考答案的每个字符所需的比特数"),
    "(detection|correction)_accuracy": (
        r"\1: accuracy", "share of sentences handled exactly right",
        r"\1：准确率", "处理完全正确的句子所占比例"),
    "(detection|correction)_precision": (
        r"\1: precision", "of the sentences changed, how many rightly",
        r"\1：精确率", "改动过的句子中正确的比例"),
    "(detection|correction)_recall": (
        r"\1: recall", "of the sentences with errors, how many solved",
        r"\1：召回率", "有错的句子中解决的比例"),
    "(detection|correction)_f1": (
        r"\1: F1", "harmonic mean of precision and recall, by sentence",
        r"\1：F1", "按句计的精确率与召回率的调和平均"),
    "false_positive_rate": (
        "False positive rate", "share of correct sentences that were changed",
        "误报率", "无错句子中被改动的比例"),
    "edit_precision": (
        "Edits: precision", "of the edits made, how many rightly",
        "编辑：精确率", "所做编辑中正确的比例"),
    "edit_recall": (
        "Edits: recall", "of the edits needed, how many made",
        "编辑：召回率", "应做编辑中完成的比例"),
    r"edit_f(1|0\.5)": (
        r"Edits: F\1", "precision and recall of edits in one figure",
        r"编辑：F\1", "编辑的精确率与召回率合为一数"),
    "mrr": (
        "Mean reciprocal rank", "1 / rank of the first relevant candidate",
        "平均倒数排名", "首个相关候选的排名的倒数"),
    r"hits@(\d+)": (
        r"Hits at \1", r"a relevant candidate among the first \1",
        r"前 \1 命中率", r"前 \1 个候选中有相关者的比例"),
    r"ndcg@(\d+)": (
        r"NDCG at \1", "gain of the order, against the best order",
        r"NDCG@\1", "排序收益与最佳排序之比"),
    "perplexity": (
        "Perplexity", "how many tokens the model hesitates between",
        "困惑度", "模型平均在多少个词元间犹豫"),
    "loss": (
        "Loss", "mean negative log likelihood of a token",
        "损失", "每个词元的平均负对数似然"),
    "bits_per_byte": (
        "Bits per byte", "comparable between tokenisers",
        "每字节比特数", "可在不同分词器之间比较"),
    "bits_per_character": (
        "Bits per character", "comparable between tokenisers",
        "每字符比特数", "可在不同分词器之间比较"),
}
_PARTS = {  # what a group matched, in English and Chinese
    "macro": ("macro", "宏平均"), "micro": ("micro", "微平均"),
    "detection": ("Detection", "检错"), "correction": ("Correction", "纠错"),
    "exact_match": ("Exact match", "完全匹配"), "token_f1": ("Token F1", "词元 F1"),
}
# fmt: on
_LESS_IS_BETTER = re.compile(
    r"calibration_error|self_bleu|rep_\d|fluency(_of_references)?|false_positive_rate|perplexity|loss"
    r"|bits_per_(byte|character)"
)


@cache
def describe(name: str) -> Metric:
    """The metric of this name; one that is not known is shown by its name."""
    for pattern, texts in _METRICS.items():
        match = re.fullmatch(pattern, name)
        if match:
            part = match[1] if match.groups() else ""
            english, chinese = _PARTS.get(part, (part, part))
            title, meaning = (text.replace(r"\1", english) for text in texts[:2])
            title_zh, meaning_zh = (text.replace(r"\1", chinese) for text in texts[2:])
            return Metric((title, title_zh), (meaning, meaning_zh), _LESS_IS_BETTER.fullmatch(name) is not None)
    return Metric((name, name), ("", ""))


def patterns() -> tuple[str, ...]:
    """Every pattern of names that is known."""
    return tuple(_METRICS)
