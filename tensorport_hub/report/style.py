"""The page's look in light and dark, and a few lines of script; the page works without them.

Nine colours for nine kinds: tints that dark text is read on, and shades for light text. The script names the
cell under the pointer in a line that does not move, and dims what a search does not find.
"""

CSS = """
:root{color-scheme:light dark;--paper:#fff;--panel:#f6f7f9;--ink:#171c26;--soft:#5b6472;--line:#d9dde3;
--cut:#fff;--link:#1f56c4;--good:#1c7a3e;--some:#8a5a00;--bad:#b3261e;--read:#3566d6;--written:#c2640b;
--k0:#b6c8f6;--k1:#f6d98f;--k2:#f9bcae;--k3:#a6dccf;--k4:#d6c0f7;--k5:#bbe0a9;--k6:#f9c6de;--k7:#dcc6b2;
--k8:#d3d8de}
@media (prefers-color-scheme:dark){:root{--paper:#12151b;--panel:#1b2029;--ink:#e8ebf0;--soft:#99a3b2;
--line:#323a47;--cut:#12151b;--link:#8ab0ff;--good:#6ccb8c;--some:#e3b04b;--bad:#ff8f85;--read:#7ea2ff;
--written:#f0a35e;--k0:#324f97;--k1:#755713;--k2:#87392f;--k3:#21665a;--k4:#5b3d93;--k5:#37682b;--k6:#86385f;
--k7:#684936;--k8:#454c56}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1200px;padding:28px 20px 40px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;
font-variant-numeric:tabular-nums}
h1{font-size:24px;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:16px;margin:0 0 10px}
p{margin:4px 0}
a{color:var(--link)}
.soft{color:var(--soft)}
.hash,td.name{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:13px;
overflow-wrap:anywhere}
nav a{margin-right:16px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(116px,1fr));gap:10px;margin:20px 0}
.tiles div{background:var(--panel);border-radius:8px;padding:10px}
.tiles div:first-child{grid-column:span 2}
.tiles dt{color:var(--soft);font-size:13px}
.tiles dd{margin:0;font-size:17px;font-weight:600;overflow-wrap:anywhere}
section{margin:28px 0 0}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:28px}
.pair section{margin:0;min-width:0}
svg{display:block;width:100%;height:auto}
.map{border-radius:8px;overflow:hidden}
.map rect{stroke:var(--cut);stroke-width:1}
.map rect:hover{stroke:var(--ink);stroke-width:2}
.map rect.lost{stroke:var(--bad);stroke-width:2}
.map rect.dim{opacity:.18}
.frames{fill:none;stroke:var(--cut);pointer-events:none}
.labels{pointer-events:none;fill:var(--ink);font:10px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.k0{fill:var(--k0);background:var(--k0)}.k1{fill:var(--k1);background:var(--k1)}
.k2{fill:var(--k2);background:var(--k2)}.k3{fill:var(--k3);background:var(--k3)}
.k4{fill:var(--k4);background:var(--k4)}.k5{fill:var(--k5);background:var(--k5)}
.k6{fill:var(--k6);background:var(--k6)}.k7{fill:var(--k7);background:var(--k7)}
.k8{fill:var(--k8);background:var(--k8)}
.narrow{display:none}
@media (max-width:640px){.wide{display:none}.narrow{display:block}body{padding:18px 14px 32px}
.kinds tr{display:grid;grid-template-columns:3fr 6fr 4fr 3fr}
.kinds th:first-child,.kinds td:first-child{grid-column:1/-1;border:0;padding-bottom:0}
.kinds th,.kinds td{padding-right:0}}
.bar{display:flex;flex-wrap:wrap;gap:4px 16px;align-items:baseline;margin:8px 0;min-height:28px}
.bar input{font:inherit;color:inherit;background:var(--panel);border:1px solid var(--line);border-radius:6px;
padding:3px 10px;width:min(260px,100%)}
#at{flex:1 1 300px;font-size:13px;color:var(--soft);overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
th{text-align:left;color:var(--soft);font-weight:500}
th,td{padding:5px 14px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
th.n,td.n{text-align:right;white-space:nowrap}
i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:8px;vertical-align:-1px}
b.whole{color:var(--good)}b.ranges{color:var(--some)}b.no{color:var(--bad)}
.grid{stroke:var(--line)}
.tick{font:11px system-ui,sans-serif;fill:var(--soft)}.tick.mid{text-anchor:middle}.tick.end{text-anchor:end}
.room{fill:var(--panel)}.fill{fill:var(--read)}
polyline{fill:none;stroke-width:2;stroke-linejoin:round}
polyline.read{stroke:var(--read)}polyline.written{stroke:var(--written)}
i.read{background:var(--read)}i.written{background:var(--written)}
summary{cursor:pointer;color:var(--link)}
details{margin:8px 0}
footer{margin-top:36px;border-top:1px solid var(--line);padding-top:10px;color:var(--soft);font-size:13px}
@media print{.bar{display:none}}
"""

SCRIPT = """
(() => {
  const cells = [...document.querySelectorAll('.map rect')], at = document.getElementById('at');
  const said = cell => cell.querySelector('title').textContent;
  const tell = event => {
    if (event.target.matches('.map rect')) at.textContent = said(event.target).split('\\n').join('; ');
  };
  for (const kind of ['pointerover', 'click']) document.addEventListener(kind, tell);
  const find = document.getElementById('find');
  find.hidden = false;
  find.addEventListener('input', () => {
    const wanted = find.value.trim().toLowerCase();
    for (const cell of cells) cell.classList.toggle('dim', !said(cell).toLowerCase().includes(wanted));
  });
})();
"""
