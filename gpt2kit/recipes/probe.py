"""Two short texts of everyday prose, written for this purpose: how well a model still reads English and Chinese."""

from __future__ import annotations

ENGLISH = """\
The road to the harbour runs downhill past the old school, and on market days it is full before seven. Carts stand \
in two rows along the wall. Most of the sellers have known one another since they were children; they keep an eye on \
each other's tables, lend small change and argue about the weather. A woman from the islands sells dried fish and \
lemons. Beside her a young man repairs clocks. He says that nobody buys new ones any more, but that everybody wants \
the old ones to go on.

When water is heated, its molecules move faster and need more room. That is why warm water rises above cold water, \
and why a pot begins to move from below long before it boils. In the sea the same thing happens slowly and on a \
great scale: the sun warms the surface, the wind pushes it along, and cold water from the depths takes its place. \
The currents that follow carry heat from the tropics to the north, and without them the winters of many countries \
would be harder.

"You promised to call," she said.

"I did call. Twice. Nobody answered, so I thought that you had gone to your sister's after all."

She looked at him for a while, then laughed and moved the chair so that he could sit down. The report was due on \
Friday. There were forty pages left to read, and neither of them had slept much. In the end they divided the work: \
he checked the figures of the last three years, while she wrote the summary that the committee would actually read.
"""

CHINESE = """\
清晨的菜市场总是最热闹的地方。天还没有亮，卖菜的人就把车停在路边，一筐一筐地往下搬。白菜、萝卜、豆腐摆得整整齐齐，\
卖鱼的老李一边收钱，一边跟熟人打招呼。旁边修钟表的年轻人说，现在很少有人买新表了，可是大家都舍不得扔掉旧的。

水受热以后，分子运动加快，体积变大，所以热水往上走，冷水往下沉。海洋里也是这样，只不过规模大得多，速度慢得多：\
太阳把表面的水晒暖，风推着它向前流，深处的冷水再补上来。这样形成的洋流把热量从赤道带到北方，如果没有它，许多国家的冬天会更冷。

“你不是说要给我打电话吗？”她问。

“我打了两次，没有人接，还以为你去姐姐家了。”

她看了他一会儿，笑了起来，把椅子挪开让他坐下。报告星期五要交，还有四十页没有看，两个人都没睡好。最后他们决定分工：\
他核对最近三年的数字，她来写委员会真正会读的那份摘要。
"""

TEXTS = {"English": ENGLISH, "Chinese": CHINESE}
