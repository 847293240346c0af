"""How the report looks. Nothing is fetched: no font, no script, no picture from elsewhere."""

STYLE = """
:root { --ink: #1f2933; --faint: #5b6775; --line: #dfe4ea; --card: #fff; --paper: #f4f6f9; --accent: #2468b4; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR",
    "Noto Sans CJK KR", NanumGothic, sans-serif; }
.ko { word-break: keep-all; }
svg text { font-family: inherit; }
#in-en, #in-ko { position: absolute; opacity: 0; pointer-events: none; }
#in-en:checked ~ main .ko, #in-ko:checked ~ main .en { display: none; }
nav { position: absolute; top: 22px; right: max(24px, calc(50vw - 576px)); display: flex; border: 1px solid var(--line);
  border-radius: 8px; overflow: hidden; background: var(--card); font-size: 14px; }
nav label { padding: 5px 14px; cursor: pointer; color: var(--faint); }
#in-en:checked ~ nav [for=in-en], #in-ko:checked ~ nav [for=in-ko] { background: var(--ink); color: #fff; }
#in-en:focus-visible ~ nav, #in-ko:focus-visible ~ nav { outline: 2px solid var(--accent); outline-offset: 2px; }
main { max-width: 1200px; margin: 0 auto; padding: 26px 24px 60px; }
header .brand { margin: 0; color: var(--accent); font-weight: 600; letter-spacing: .02em; }
h1 { margin: 6px 0 8px; font-size: clamp(26px, 3.4vw, 40px); line-height: 1.18; letter-spacing: -.015em; }
.lead { max-width: 62em; margin: 0 0 10px; font-size: 18px; color: #3a4653; }
.facts { margin: 0 0 18px; color: var(--faint); font-size: 14px; }
.facts span + span::before { content: "·"; margin: 0 9px; }
.warnings { border-left: 4px solid #d9a514; background: #fff8e1; border-radius: 0 8px 8px 0; padding: 8px 16px; margin: 0 0 20px; }
.warnings p { margin: 4px 0; font-size: 15px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 22px 26px 24px; margin: 0 0 22px; }
h2 { margin: 0 0 6px; font-size: 23px; letter-spacing: -.01em; line-height: 1.3; }
h3 { margin: 18px 0 8px; font-size: 17px; line-height: 1.3; }
.how { margin: 0 0 16px; color: var(--faint); max-width: 68em; font-size: 15px; }
figure { margin: 0; }
svg { display: block; width: 100%; min-width: 860px; height: auto; }
.scroll { overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(208px, 1fr)); gap: 14px; border: 0; padding: 0; background: none; }
.card { background: var(--card); border: 1px solid var(--line); border-top: 5px solid var(--way, #9aa5b1); border-radius: 10px;
  padding: 14px 16px 16px; display: flex; flex-direction: column; }
.card h3 { margin: 0 0 4px; font-size: 18px; }
.card h3 small { margin-left: 8px; font-weight: 400; color: var(--faint); font-size: 13px; white-space: nowrap; }
.engine { margin: 0 0 12px; font-size: 13.5px; line-height: 1.45; color: var(--faint); flex: 1 0 auto; }
.baseline { margin: 0 0 8px; font-size: 14px; font-weight: 600; }
.reason { margin: 6px 0 0; font-size: 13px; line-height: 1.45; color: #6b4b00; overflow-wrap: anywhere; }
.card.absent { background: repeating-linear-gradient(-45deg, #fafbfc 0 10px, #f1f3f6 10px 20px); border-top-color: #b8c1cc; }
dl { margin: 0; display: grid; grid-template-columns: 1fr auto; gap: 4px 10px; font-size: 14px; align-items: center; }
dt { color: #3a4653; }
dt small { color: var(--faint); }
dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; text-align: right; border-radius: 5px; padding: 1px 8px;
  overflow-wrap: anywhere; }
.card dl:not(.costs) { grid-template-columns: auto 1fr; font-size: 13px; }
.card dl:not(.costs) dd { font-weight: 400; padding: 0; }
.unknown { color: var(--faint); background: #f1f3f6; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 8px 10px; border-bottom: 1px solid var(--line); }
thead th { color: var(--faint); font-weight: 600; font-size: 13.5px; border-bottom: 2px solid #cbd2da; vertical-align: bottom; }
tbody th { font-weight: 500; }
small { display: block; color: var(--faint); font-size: 12.5px; font-weight: 400; line-height: 1.4; }
dt small, h3 small { display: inline; }
.axes { border-collapse: separate; border-spacing: 4px; min-width: 860px; }
.axes th, .axes td { border: 0; }
.axes thead th { text-align: center; padding: 2px 6px; }
.axes thead th[colspan] { border-bottom: 2px solid #cbd2da; }
.axes tbody th { border-left: 6px solid var(--way); border-radius: 6px; font-weight: 600; background: #f6f8fa; vertical-align: middle; width: 150px; }
.axes tbody td { border-radius: 6px; text-align: center; padding: 9px 6px; width: 12%; }
.axes td b { display: block; font-size: 19px; line-height: 1.2; }
.axes td span span, .axes td > span { font-size: 12.5px; }
.axes td > span { display: block; line-height: 1.3; }
.axes td.plain { background: #eef2f7; }
.scale { list-style: none; display: flex; gap: 0; padding: 0; margin: 10px 4px 0; font-size: 12px; }
.scale li { flex: 1; text-align: center; padding: 2px 0; }
.scale li:first-child { border-radius: 5px 0 0 5px; } .scale li:last-child { border-radius: 0 5px 5px 0; }
.whys { columns: 2 420px; column-gap: 34px; }
.why { border-left: 5px solid var(--way); padding: 0 0 0 16px; margin: 0 0 18px; break-inside: avoid; }
.why h3 { margin: 0 0 4px; } .why.metal { column-span: all; }
.why ul, #method ul { margin: 0; padding-left: 18px; font-size: 15px; }
.why li, #method li { margin: 0 0 6px; }
.verdict { white-space: nowrap; font-weight: 600; padding: 2px 9px; border-radius: 999px; font-size: 13.5px; }
.agrees { background: #dff2e6; color: #14603a; } .partly { background: #fdf1cf; color: #6d5200; }
.differs { background: #fbe0dc; color: #8c2318; } .unmeasured { background: #eef1f5; color: var(--faint); }
.source { color: var(--faint); font-size: 13.5px; }
.because { margin: 5px 0 0; color: #3a4653; font-size: 14px; }
.agreement thead th:nth-child(1) { width: 27%; } .agreement thead th:nth-child(2) { width: 15%; } .agreement thead th:nth-child(3) { width: 12%; }
.public { background: #fbfaf6; border-style: dashed; border-color: #c9bfa5; }
.badge { border: 1px dashed #a08f63; border-radius: 5px; padding: 1px 7px; color: #6d5f38; }
.figures .group th { padding-top: 16px; color: var(--faint); font-size: 13.5px; font-weight: 600; border-bottom: 2px solid var(--line); }
.figures td b { font-weight: 600; } .factor { color: var(--faint); margin-left: 4px; }
.figures th[scope=row] { min-width: 200px; } .figures td { white-space: nowrap; } .figures td .absent, .figures td .absent small { white-space: normal; }
span.absent { color: var(--faint); }
.plain th { width: 200px; font-weight: 500; color: #3a4653; } .plain td { overflow-wrap: anywhere; }
details { margin-top: 16px; } summary { cursor: pointer; color: var(--accent); }
code { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media (max-width: 620px) { section { padding: 18px 16px; } nav { position: static; width: max-content; margin: 12px 16px 0 auto; } }
@media print { body { background: #fff; } nav { display: none; } section { break-inside: avoid; border-color: #ccc; } svg { min-width: 0; } }
"""

#: Without it everything works too: it only chooses the language that the reader has.
SCRIPT = """<script>
if (location.hash === "#ko" || (location.hash !== "#en" && (navigator.language || "").startsWith("ko")))
  document.getElementById("in-ko").checked = true;
</script>"""
