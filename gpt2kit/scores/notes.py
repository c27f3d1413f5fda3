"""The notes of scores and comparisons in Chinese, for the page. A note that is not known stays in English."""

from __future__ import annotations

import re

_CHINESE = (
    (r"left out of macro averages, for neither true nor predicted: (.*)", r"未计入宏平均（真实与预测中均未出现）：\1"),
    (r"predicted but never true, counted with F1 0 in macro averages: (.*)",
     r"预测过但从未为真，宏平均中 F1 计为 0：\1"),
    (r"never predicted, counted with precision 0 in macro averages: (.*)", r"从未预测过，宏平均中精确率计为 0：\1"),
    (r"AUROC is the mean over (\d+) of (\d+) classes: .*", r"AUROC 为 \2 类中 \1 类的平均：其余各类从未为真"),
    (r"AUROC is undefined: every example is of class (.*)", r"AUROC 无定义：所有样本都属于 \1 类"),
    (r"no example has a label, true or predicted: .*", "没有任何样本带有真实或预测的标签：只有子集准确率有定义"),
    (r"BLEU is 0: no generated text has four tokens.*",
     "BLEU 为 0：没有任何生成文本达到四个词元，无四元组可比；请看 chrF"),
    (r"(distinct_\d) is undefined: no text has (\d) tokens", r"\1 无定义：没有任何文本达到 \2 个词元"),
    (r"(rep_\d) is over (\d+) of (\d+) texts: the others have fewer than (\d) tokens",
     r"\1 只计 \3 篇中的 \2 篇：其余不足 \4 个词元"),
    (r"self_bleu is undefined: it needs two texts", "self_bleu 无定义：至少需要两篇文本"),
    (r"self_bleu is over (\d+) of (\d+) texts", r"self_bleu 只计 \2 篇中的 \1 篇"),
    (r"every answer is empty: .*", "所有回答都是空的：谈不上多样性"),
    (r"(fluency\w*) is over (\d+) of (\d+) texts: the others are empty", r"\1 只计 \3 篇中的 \2 篇：其余是空的"),
    (r"(fluency\w*) is undefined: every text is empty", r"\1 无定义：所有文本都是空的"),
    (r"false_positive_rate is undefined: every sentence has an error", "false_positive_rate 无定义：每个句子都有错"),
    (r"(\w+) is undefined: no sentence was changed", r"\1 无定义：没有句子被改动"),
    (r"(\w+) is undefined: no sentence needed a change", r"\1 无定义：没有句子需要改动"),
    (r"(\w+) is undefined: no sentence was changed or needed it", r"\1 无定义：没有句子被改动或需要改动"),
    (r"(\w+) is undefined: no edit was made", r"\1 无定义：没有做任何编辑"),
    (r"(\w+) is undefined: no edit was needed", r"\1 无定义：不需要任何编辑"),
    (r"([\w.]+) is undefined: no edit was made or needed", r"\1 无定义：没有做也不需要任何编辑"),
    (r"(hits@.*) left out: no query has more candidates", r"略去 \1：没有查询的候选多于此数"),
    (r"perplexity is too large for a number: the loss is (\d+) nats per token",
     r"困惑度过大，无法表示：损失为每词元 \1 奈特"),
    (r"no results of single examples: the difference has no interval", "没有逐个样本的结果：差值没有区间"),
    (r"(\w+) differs: (.*) and (.*)", r"\1 不同：\2 与 \3"),
    (r"the two (\w+) cannot be compared: a perplexity per token depends on what a token is.*",
     r"两个 \1 不能比较：每词元困惑度取决于何为词元；请比较每字节或每字符比特数"),
    (r"the two (\w+) have different units: '(.*)' and '(.*)'.*", r"两个 \1 不能比较：单位不同，为 \2 与 \3"),
    (r"the two (\w+) cannot be compared: a longer context makes .*? \((\d+) and (\d+)\).*",
     r"两个 \1 不能比较：上下文不同（\2 与 \3），上下文越长文本越容易预测"),
    (r"the two (\w+) cannot be compared: a shorter stride gives .*? \((\d+) and (\d+)\).*",
     r"两个 \1 不能比较：步幅不同（\2 与 \3），步幅越短文本越容易预测"),
)  # fmt: skip


def chinese(note: str) -> str:
    """The note in Chinese; `metric: note` keeps its metric."""
    for pattern, template in _CHINESE:
        match = re.fullmatch(rf"((?:[\w@.]+: )?){pattern}", note, re.S)
        if match:
            numbered = re.sub(r"\\(\d)", lambda group: f"\\{int(group[1]) + 1}", template)
            return match.expand(rf"\1{numbered}")
    return note
