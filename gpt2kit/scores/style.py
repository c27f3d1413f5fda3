"""The page's style: one column on a phone, light and dark, readable on paper. No script, nothing from elsewhere."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbf9;--card:#fff;--fg:#1c2126;--muted:#646d76;--line:#dfe3e6;--accent:#2563a8;
--rgb:37 99 168;--warm:#b4501e;--warm-rgb:196 72 32;--good:#1f7a4d;--good-rgb:31 122 77}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1b2024;--fg:#e4e7ea;--muted:#99a3ad;--line:#323a41;
--accent:#74aeea;--rgb:116 174 234;--warm:#eb9a6c;--warm-rgb:235 130 84;--good:#6cc795;--good-rgb:108 199 149}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans","PingFang SC","Hiragino Sans GB","Microsoft YaHei","Noto Sans CJK SC",sans-serif}
#en:checked~* .zh,#zh:checked~* .en{display:none}
.pick{position:absolute;opacity:0;width:1px;height:1px}
.wrap{max-width:60rem;margin:0 auto;padding:1.2rem 1.1rem 4rem}
header{display:flex;flex-wrap:wrap;gap:.4rem 1rem;align-items:baseline;justify-content:space-between}
h1{font-size:1.65rem;line-height:1.2;margin:.3rem 0;overflow-wrap:anywhere;letter-spacing:-.01em}
h2{font-size:1.15rem;margin:2.6rem 0 .3rem;letter-spacing:-.005em}
h2+p{margin-top:0}
p{margin:.35rem 0 .8rem}
.muted,figcaption,small{color:var(--muted)}
small{font-size:.82rem}
.languages{font-size:.85rem;white-space:nowrap}
.languages label{cursor:pointer;padding:.15rem .55rem;border:1px solid var(--line);color:var(--muted)}
.languages label:first-child{border-radius:.4rem 0 0 .4rem;border-right:0}
.languages label:last-child{border-radius:0 .4rem .4rem 0}
#en:checked~.wrap label[for=en],#zh:checked~.wrap label[for=zh]{background:var(--accent);border-color:var(--accent);
color:var(--bg)}
#en:focus-visible~.wrap label[for=en],#zh:focus-visible~.wrap label[for=zh]{outline:2px solid var(--fg);
outline-offset:2px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(12.5rem,1fr));gap:.8rem;margin:1rem 0}
.card,.example,figure{background:var(--card);border:1px solid var(--line);border-radius:.6rem}
.card{padding:.8rem 1rem .9rem}
.card b{display:block;font-size:2rem;line-height:1.15;font-weight:650;font-variant-numeric:tabular-nums}
.card .name{font-size:.92rem}
.band{position:relative;height:.42rem;border-radius:.21rem;background:var(--line);margin:.5rem 0 .35rem}
.band i{position:absolute;top:0;bottom:0;background:rgb(var(--rgb)/.45)}
.band u{position:absolute;top:-.22rem;bottom:-.22rem;width:.2rem;margin-left:-.1rem;border-radius:.1rem;
background:var(--accent)}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch;margin:.6rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.full{width:100%}
th,td{text-align:left;padding:.42rem .8rem .42rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;font-size:.85rem;color:var(--muted)}
td.n,th.n{text-align:right;white-space:nowrap}
td .band{min-width:7rem;margin:.55rem 0 0}
.facts td:first-child{color:var(--muted);white-space:nowrap}
.facts td{overflow-wrap:anywhere}
.matrix{font-size:.88rem}
.matrix th,.matrix td{padding:.28rem .42rem;border:1px solid var(--line);text-align:center;white-space:nowrap;
vertical-align:middle}
.matrix th{max-width:8rem;overflow:hidden;text-overflow:ellipsis;font-size:.78rem}
.matrix tbody th{text-align:right}
.matrix td small{display:block;line-height:1.1;color:inherit;opacity:.75}
.matrix .muted{color:var(--muted)}
.short td:first-child{padding-right:2rem}
.notes{border-left:3px solid var(--warm);padding:.1rem 0 .1rem .9rem;margin:1rem 0}
.notes p{margin:.25rem 0}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(20rem,100%),1fr));gap:.9rem;margin-top:1rem}
figure{margin:0;padding:.9rem .9rem .7rem;min-width:0}
figure svg{display:block;width:100%;height:auto;stroke-linejoin:round;font-family:inherit}
figcaption{font-size:.88rem;margin-top:.5rem}
figcaption b{color:var(--fg)}
.example{padding:.75rem 1rem;margin:.7rem 0}
.example dl{margin:0;display:grid;grid-template-columns:max-content 1fr;gap:.3rem .9rem}
.example dt{color:var(--muted);font-size:.85rem;padding-top:.1rem}
.example dd{margin:0;min-width:0;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}
.example .head{display:flex;justify-content:space-between;gap:1rem;color:var(--muted);font-size:.85rem;
margin-bottom:.4rem;font-variant-numeric:tabular-nums}
mark{color:inherit;border-radius:.15rem;padding:0 .08em}
mark.extra{background:rgb(var(--warm-rgb)/.25);text-decoration:underline dotted;text-underline-offset:.18em}
mark.missing{background:rgb(var(--good-rgb)/.22);text-decoration:underline;text-underline-offset:.18em}
.empty{color:var(--muted);font-style:italic}
details{margin:.5rem 0}
summary{cursor:pointer}
summary h2{display:inline-block;margin:1rem 0 .4rem}
dd details summary{color:var(--accent);font-size:.85rem}
.better{color:var(--good)}.worse{color:var(--warm)}
footer{margin-top:3rem;padding-top:.8rem;border-top:1px solid var(--line);font-size:.85rem;color:var(--muted)}
@media(max-width:34rem){.example dl{grid-template-columns:1fr;gap:.1rem}.example dd{margin-bottom:.45rem}
.facts td:first-child{white-space:normal;overflow-wrap:anywhere;width:40%}
.stack thead{display:none}.stack tr{display:block;padding:.6rem 0;border-bottom:1px solid var(--line)}
.stack td{display:flex;justify-content:space-between;gap:1rem;border:0;padding:.1rem 0;text-align:right}
.stack td:first-child{display:block;text-align:left;font-weight:600}
.stack td:first-child small{font-weight:400}
.stack td[data-en]::before{content:attr(data-en);color:var(--muted);font-size:.85rem;text-align:left}
#zh:checked~.wrap .stack td[data-zh]::before{content:attr(data-zh)}
.scores thead{display:none}
.scores tr{display:grid;grid-template-columns:1fr auto;gap:0 1rem;padding:.55rem 0;border-bottom:1px solid var(--line)}
.scores td{border:0;padding:0}
.scores td:first-child{grid-row:1/3}
.scores td:nth-child(2){font-weight:600}
.scores td.low{grid-column:2;color:var(--muted);font-size:.85rem}
.scores td.bar{grid-column:1/3}}
@media print{:root{color-scheme:light}.languages{display:none}body{background:#fff;font-size:11pt}
.card,.example,figure{break-inside:avoid}details>*{display:block}}
"""
