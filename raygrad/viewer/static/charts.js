// Charts from the server's plain JSON, drawn with Apache ECharts in the colours of the reports.
import { h, number } from "./page.js";

const DASHES = ["solid", [7, 4], [8, 3, 2, 3], [2, 3]];
const COLOURS = 6;

/** Apache ECharts, which pages with charts fetch while the server reads their tables. */
const library = new Promise((resolve, reject) => {
  document.head.append(h("script", { src: "/static/echarts/echarts.min.js", load: () => resolve(window.echarts), error: () => reject(new Error("the charts could not be loaded")) }));
});

function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { ink: read("--ink"), muted: read("--muted"), grid: read("--grid"), paper: read("--paper"), series: Array.from({ length: COLOURS }, (_, i) => read(`--s${i}`)) };
}

/** A figure that can be given other data: `show(chart)`. Its text says to a screen reader what it shows. */
export function figure(titled = true) {
  const place = h("div", { class: "chart", role: "img" });
  const heading = h("h3");
  const caption = h("figcaption", { class: "muted" });
  const element = h("figure", null, titled && heading, place, caption);
  let drawn, shown;
  async function draw(fresh) {
    const echarts = await library;
    if (!shown) return;
    if (!drawn) {
      drawn = echarts.init(place, null, { renderer: "canvas" });
      new ResizeObserver(() => drawn.resize()).observe(place);
      window.addEventListener("ground", () => draw(false));
    }
    const option = { animation: false, textStyle: { fontFamily: "system-ui, sans-serif" }, ...KINDS[shown.kind](shown, colours(), place) };
    drawn.setOption(option, fresh ? { notMerge: true } : { replaceMerge: ["series", "visualMap", "legend"] });
  }
  return {
    element,
    get chart() { return drawn; },
    async show(chart, note) {
      const fresh = !shown || shown.kind !== chart.kind || shown.x !== chart.x;
      shown = chart;
      heading.textContent = chart.title ?? "";
      caption.textContent = note ?? "";
      place.setAttribute("aria-label", told(chart));
      if (chart.height) place.style.height = `${chart.height}px`;
      await draw(fresh);
    },
  };
}

/** Figures for a list of charts in a grid, of which there may be more or fewer the next time. */
export function figures(attributes) {
  const element = h("div", attributes ?? { class: "grid" });
  const kept = new Map();
  return {
    element,
    async show(charts) {
      const names = new Set(charts.map((c) => c.title));
      for (const [name, f] of kept) if (!names.has(name)) { f.element.remove(); kept.delete(name); }
      for (const c of charts) {
        if (!kept.has(c.title)) {
          kept.set(c.title, figure());
          element.append(kept.get(c.title).element);
        }
        await kept.get(c.title).show(c);
      }
    },
  };
}

/** What a chart shows, in words. */
function told(chart) {
  if (chart.kind === "lines") {
    const said = chart.curves.slice(0, 12).map((c) => {
      const y = c.y.filter((v) => v != null);
      return y.length ? `${c.label || "a run"} from ${number(y[0])} to ${number(y.at(-1))}` : `${c.label}: nothing measured`;
    });
    return `${chart.title} against ${chart.x}: ${said.join("; ")}.`;
  }
  return chart.told ?? chart.title ?? "chart";
}

const COUNTED = new Set(["rounds", "communications"]);

function axis(c, name, more) {
  return {
    name, nameLocation: "middle", nameGap: 28, nameTextStyle: { color: c.ink }, axisLabel: { color: c.ink, hideOverlap: true, formatter: short },
    axisLine: { show: true, lineStyle: { color: c.muted } }, splitLine: { show: false }, ...more,
  };
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(0);
  return value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

const tip = (c) => ({ backgroundColor: c.paper, borderColor: c.muted, textStyle: { color: c.ink }, confine: true });
const tools = (c, zoom = true) => ({ right: 0, top: -6, itemSize: 13, iconStyle: { borderColor: c.muted }, feature: { ...(zoom && { dataZoom: { yAxisIndex: "none" }, restore: {} }), saveAsImage: { backgroundColor: c.paper } } });

function look(c, index) {
  if (index == null) return { color: c.muted, width: 0.8, type: "solid", opacity: 0.6 };
  return { color: c.series[index % COLOURS], width: 2, type: DASHES[Math.floor(index / COLOURS) % DASHES.length], opacity: 1 };
}

function lines(chart, c) {
  const series = [], bands = [];
  for (const curve of chart.curves) {
    const style = look(c, curve.look);
    const few = curve.y.filter((v) => v != null).length <= 2;
    series.push({
      type: "line", name: curve.label || "runs", data: curve.x.map((x, i) => [x, curve.y[i]]), lineStyle: style, itemStyle: { color: style.color },
      showSymbol: few, symbolSize: 6, connectNulls: true, z: curve.look == null ? 1 : 3, silent: curve.look == null,
    });
    if (curve.low) bands.push(band(curve, style));
  }
  const named = chart.curves.filter((x) => x.look != null && x.label);
  if (chart.line != null && series.length) series.at(-1).markLine = { symbol: "none", silent: true, data: [{ yAxis: chart.line }], lineStyle: { color: c.ink, type: "dotted" }, label: { formatter: `target ${number(chart.line)}`, color: c.ink, position: "insideStartTop" } };
  const values = chart.curves.flatMap((x) => x.y).filter((v) => v != null);
  const log = chart.log && Math.min(...values) > 0 && Math.max(...values) > 20 * Math.min(...values);
  const legend = named.length > 1;
  return {
    grid: { left: 58, right: 14, top: 26, bottom: legend ? 70 : 44 },
    tooltip: { trigger: "axis", ...tip(c), valueFormatter: number },
    toolbox: tools(c),
    legend: legend ? { type: "scroll", bottom: 0, data: named.map((x) => x.label), textStyle: { color: c.ink }, pageTextStyle: { color: c.ink }, pageIconColor: c.ink } : { show: false },
    xAxis: axis(c, chart.x, { type: chart.log_x ? "log" : "value", logBase: 2, min: "dataMin", max: "dataMax", minInterval: COUNTED.has(chart.x) ? 1 : 0 }),
    yAxis: axis(c, "", { type: log ? "log" : "value", scale: true, splitLine: { show: true, lineStyle: { color: c.grid } } }),
    series: [...series, ...bands],
  };
}

/** The area between the least and the largest. */
function band(curve, style) {
  const points = curve.x.map((x, i) => [x, curve.low[i], curve.high[i]]).filter((p) => p[1] != null && p[2] != null);
  return {
    type: "custom", silent: true, z: 2, tooltip: { show: false }, clip: true, data: points.length ? [[points[0][0], points[0][1]]] : [],
    renderItem: (_, api) => ({
      type: "polygon", silent: true, style: { fill: style.color, opacity: 0.18 },
      shape: { points: [...points.map((p) => api.coord([p[0], p[2]])), ...points.toReversed().map((p) => api.coord([p[0], p[1]]))] },
    }),
  };
}

function scatter(chart, c) {
  const series = chart.groups.flatMap((g) => {
    const style = look(c, g.look ?? 0);
    return [
      { type: "scatter", name: g.label, data: g.x.map((x, i) => [x, g.y[i]]), symbolSize: 7, itemStyle: { color: style.color, opacity: 0.6 } },
      { type: "line", name: g.label, data: g.best_x.map((x, i) => [x, g.best_y[i]]), lineStyle: style, itemStyle: { color: style.color }, showSymbol: false, tooltip: { show: false } },
    ];
  });
  return {
    grid: { left: 58, right: 14, top: 22, bottom: chart.groups.length > 1 ? 70 : 44 },
    tooltip: { trigger: "item", ...tip(c), formatter: (p) => `${p.marker}${escape(p.seriesName)}<br>${escape(chart.x)} ${number(p.value[0])}: ${number(p.value[1])}` },
    toolbox: tools(c), legend: chart.groups.length > 1 ? { bottom: 0, type: "scroll", textStyle: { color: c.ink } } : { show: false },
    xAxis: axis(c, chart.x, { type: chart.log_x ? "log" : "value", scale: true }),
    yAxis: axis(c, chart.y, { type: "value", scale: true, nameGap: 42, splitLine: { show: true, lineStyle: { color: c.grid } } }), series,
  };
}

const escape = (text) => String(text).replace(/[&<>"']/g, (x) => `&#${x.charCodeAt(0)};`);
const ramp = (c) => [c.grid, c.series[0]];

function value_map(chart, c) {
  const [x, y, value] = chart.points;
  const known = x.map((_, i) => i).filter((i) => value[i] != null);
  const values = known.map((i) => value[i]);
  return {
    grid: { left: 58, right: 116, top: 22, bottom: 44 }, toolbox: tools(c),
    tooltip: { trigger: "item", ...tip(c), formatter: (p) => `${escape(chart.x)} ${number(p.value[0])}<br>${escape(chart.y)} ${number(p.value[1])}<br>${p.seriesIndex ? "diverged or failed" : `${escape(chart.value)} ${number(p.value[2])}`}` },
    visualMap: { type: "continuous", seriesIndex: 0, dimension: 2, right: 0, top: "middle", calculable: true, precision: 3, min: Math.min(...values), max: Math.max(...values), inRange: { color: ramp(c) }, textStyle: { color: c.ink }, text: [chart.value, ""] },
    xAxis: axis(c, chart.x, { type: chart.log_x ? "log" : "value", scale: true }), yAxis: axis(c, chart.y, { type: "value", scale: true, nameGap: 42, boundaryGap: ["6%", "6%"] }),
    series: [
      { type: "scatter", symbolSize: 14, data: known.map((i) => [x[i], y[i], value[i]]), itemStyle: { borderColor: c.muted, borderWidth: 1 } },
      { type: "scatter", symbol: "path://M0,0L4,4M0,4L4,0", symbolSize: 10, itemStyle: { color: "none", borderColor: c.series[1], borderWidth: 2 }, data: x.map((_, i) => i).filter((i) => value[i] == null).map((i) => [x[i], y[i]]) },
    ],
  };
}

/** Cells with counts of several kinds, the first of which is the good one: one colour for it, another for the rest. */
function counts(chart, c) {
  const { rows, columns, kinds } = chart;
  const width = columns.length - 1;
  const size = (cell) => (rows[Math.floor(cell / width) + 1] - rows[Math.floor(cell / width)]) * (columns[(cell % width) + 1] - columns[cell % width]);
  const said = new Map(), bad = new Map();
  const good = [];
  kinds.forEach((kind) => kind.cells.forEach((cell, i) => {
    said.set(cell, [...(said.get(cell) ?? []), `${kind.name} ${kind.counts[i]}`]);
    if (kind.name === chart.good) good.push([cell % width, Math.floor(cell / width), kind.counts[i] / size(cell)]);
    else bad.set(cell, (bad.get(cell) ?? 0) + kind.counts[i] / size(cell));
  }));
  const span = (edges, i) => (edges[i + 1] - edges[i] === 1 ? edges[i] : `${edges[i]} to ${edges[i + 1] - 1}`);
  const from = (edges, first) => Array.from({ length: edges.length - 1 }, (_, i) => String(edges[i] + first));
  const map = (index, colour, low) => ({ type: "continuous", show: false, seriesIndex: index, dimension: 2, min: 0, max: 1, inRange: { color: [colour, colour], opacity: [low, 1] } });
  return {
    grid: { left: 58, right: 14, top: 22, bottom: 44 }, toolbox: tools(c, false),
    tooltip: { ...tip(c), formatter: (p) => `${escape(chart.y)} ${span(rows, p.value[1])}, ${escape(chart.x)} ${span(columns.map((e) => e + 1), p.value[0])}<br>${said.get(p.value[1] * width + p.value[0]).map(escape).join("<br>")}` },
    visualMap: [map(0, c.series[0], 0.25), map(1, c.series[1], 0.45)],
    xAxis: axis(c, chart.x, { type: "category", data: from(columns, 1), axisLabel: { color: c.ink, hideOverlap: true } }),
    yAxis: axis(c, chart.y, { type: "category", data: from(rows, 0), nameGap: 42, axisLabel: { color: c.ink, hideOverlap: true } }),
    series: [
      { type: "heatmap", data: good, progressive: 0, emphasis: { disabled: true } },
      { type: "heatmap", data: [...bad].map(([cell, v]) => [cell % width, Math.floor(cell / width), Math.min(1, v)]), progressive: 0, emphasis: { disabled: true } },
    ],
  };
}

/** Classes x clients, and below it the number of examples. */
function shares(chart, c) {
  const { edges, examples, shares: cells, names } = chart;
  const span = (i) => (edges[i + 1] - edges[i] === 1 ? `client ${edges[i]}` : `${edges[i + 1] - edges[i]} clients`);
  const labels = Array.from({ length: edges.length - 1 }, (_, i) => String(edges[i]));
  const both = cells !== null;
  const x = (index, name) => axis(c, name, { type: "category", data: labels, gridIndex: index, axisLabel: { show: index === 0, color: c.ink, hideOverlap: true } });
  const bars = { type: "bar", name: "examples", data: examples, itemStyle: { color: c.series[0] }, xAxisIndex: 0, yAxisIndex: 0, large: true };
  return {
    grid: both ? [{ left: 74, right: 14, height: 60, bottom: 44 }, { left: 74, right: 14, top: 22, bottom: 124 }] : [{ left: 74, right: 14, top: 22, bottom: 44 }],
    toolbox: tools(c, false),
    tooltip: { ...tip(c), formatter: (p) => (p.seriesName === "examples" ? `${span(p.dataIndex)}: ${number(p.value)} examples` : `${span(p.value[0])}<br>${escape(names[p.value[1]] ?? `class ${p.value[1]}`)}: ${(100 * p.value[2]).toFixed(1)} %`) },
    visualMap: both ? { type: "continuous", show: false, seriesIndex: 1, dimension: 2, min: 0, max: 1, inRange: { color: ramp(c) } } : undefined,
    xAxis: both ? [x(0, chart.x), x(1, "")] : [x(0, chart.x)],
    yAxis: [axis(c, "examples", { type: "value", gridIndex: 0, nameGap: 52, splitNumber: 2 }), ...(both ? [axis(c, "class", { type: "category", gridIndex: 1, nameGap: 58, data: cells[0].map((_, i) => (names[i] ?? String(i)).slice(0, 12)), axisLabel: { color: c.ink, hideOverlap: true } })] : [])],
    series: [bars, ...(both ? [{ type: "heatmap", name: "shares", xAxisIndex: 1, yAxisIndex: 1, progressive: 0, emphasis: { disabled: true }, data: cells.flatMap((row, i) => row.map((v, k) => [i, k, v])).filter((d) => d[2] > 0) }] : [])],
  };
}

/** Hosts x seconds: bars of the attempts at gangs, or how busy hosts were; what went wrong in another colour. */
function hosts(chart, c) {
  const { bars, busy, edges, troubled, outcomes } = chart;
  const names = chart.hosts.map((x) => x.name);
  const rect = (colour, least) => (params, api) => {
    const [x0, y] = api.coord([api.value(0), api.value(2)]);
    const x1 = api.coord([api.value(1), api.value(2)])[0];
    const high = api.size([0, 1])[1] * 0.7;
    const area = params.coordSys;
    const left = Math.max(x0, area.x), right = Math.min(Math.max(x1, x0 + least), area.x + area.width);
    return right <= left ? null : { type: "rect", shape: { x: left, y: y - high / 2, width: right - left, height: high }, style: { fill: colour, stroke: c.paper, lineWidth: right - left > 4 ? 0.5 : 0, opacity: api.value(3) } };
  };
  const items = (t, opacity) => t.host.map((host, i) => [t.start_s[i], t.end_s[i], host, opacity(t, i), i]);
  const told = (t) => (p) => {
    const i = p.value[4];
    return `${escape(names[t.host[i]])}, round ${t.round[i]}, phase ${t.phase[i]}, gang ${t.gang[i]}<br>${number(t.start_s[i])} to ${number(t.end_s[i])} s, ${t.clients[i]} clients, attempt ${t.attempt[i]}<br>${escape(outcomes[t.outcome[i]])}`;
  };
  const series = [];
  if (bars) series.push({ type: "custom", name: "gangs", renderItem: rect(c.series[0], 1), encode: { x: [0, 1], y: 2 }, data: items(bars, (t, i) => (t.gang[i] % 2 ? 0.65 : 1)), tooltip: { formatter: told(bars) } });
  else series.push({ type: "custom", name: "busy", renderItem: rect(c.series[0], 1), encode: { x: [0, 1], y: 2 }, data: busy.flatMap((row, host) => row.map((share, i) => [edges[i], edges[i + 1], host, share]).filter((d) => d[3] > 0)), tooltip: { formatter: (p) => `${escape(names[p.value[2]])}: busy ${(100 * p.value[3]).toFixed(0)} % from ${number(p.value[0])} to ${number(p.value[1])} s` } });
  series.push({ type: "custom", name: "trouble", renderItem: rect(c.series[1], 3), encode: { x: [0, 1], y: 2 }, data: items(troubled, () => 1), tooltip: { formatter: told(troubled) }, z: 5 });
  return {
    grid: { left: 90, right: 14, top: 22, bottom: 44 }, toolbox: { ...tools(c, false) }, tooltip: { trigger: "item", ...tip(c) },
    xAxis: axis(c, "wall seconds", { type: "value", min: chart.window[0], max: chart.window[1] }),
    yAxis: axis(c, "", { type: "category", data: names, inverse: true, axisLabel: { color: c.ink, width: 80, overflow: "truncate" } }), series,
  };
}

function parallel(chart, c) {
  const values = chart.value.filter((v) => v != null);
  const low = Math.min(...values), high = Math.max(...values);
  const ticked = (ticks) => ({ axisLabel: { color: c.ink, customValues: ticks.map((t) => t[0]), formatter: (v) => ticks.reduce((a, b) => (Math.abs(b[0] - v) < Math.abs(a[0] - v) ? b : a))[1] }, axisTick: { customValues: ticks.map((t) => t[0]) } });
  const count = chart.axes.length;
  return {
    parallel: { left: 50, right: 60, top: 36, bottom: 20, parallelAxisDefault: { nameTextStyle: { color: c.ink }, axisLine: { lineStyle: { color: c.muted } } } }, toolbox: tools(c, false),
    parallelAxis: [...chart.axes.map((a, i) => ({ dim: i, name: a.name, min: -0.02, max: 1.02, ...ticked(a.ticks) })), { dim: count, name: chart.label, scale: true, axisLabel: { color: c.ink, formatter: short } }],
    visualMap: { show: false, type: "continuous", dimension: count, min: low, max: high, inRange: { color: ramp(c) }, outOfRange: { color: c.muted } },
    series: [{ type: "parallel", lineStyle: { width: 1.5, opacity: 0.75 }, data: chart.value.map((v, i) => [...chart.axes.map((a) => a.position[i] ?? "-"), v ?? "-"]) }],
  };
}

const KINDS = { lines, scatter, map: value_map, counts, shares, hosts, parallel };
