// A run: how it learns, who took part, what hosts did, who holds what, its settings, where it comes from.
import { figure, figures } from "./charts.js";
import { choice, command, folded, follow, get, h, link, live, main, number, percent, refill, seconds, state, table, title } from "./page.js";

export function start(at) {
  const api = (what, query = "") => `/api/${what}/${at.split("/").map(encodeURIComponent).join("/")}${query}`;
  let axis = "round", axes = "", known = null;
  const problem = h("p", { class: "bad", role: "alert", hidden: true });
  const head = h("div"), summary = h("div"), axisBar = h("div"), settings = h("div"), lineage = h("div"), commands = h("div");
  const learning = figures(), alignment = figures(), probed = h("div", null, h("h3", null, "Gradient alignment"), alignment.element);
  const nothing = h("p", { class: "muted" }, "No round is finished yet.");
  const participation = part("Participation", "participation"), hosts = timeline(api, problem), partition = part("Data distribution", "data");

  main(problem, head,
    h("h2", { id: "learning" }, "Learning"), axisBar, nothing, learning.element, probed,
    h("h2", { id: "summary" }, "Summary"), summary,
    participation.element, hosts.element, partition.element,
    h("h2", { id: "settings" }, "Settings"), settings, lineage, h("h2", { id: "commands" }, "Go on, repeat, report"), commands);

  async function curves() {
    const found = await get(api("curves", `?axis=${axis}`));
    nothing.hidden = found.learning.length > 0;
    probed.hidden = !found.alignment.length;
    await learning.show(found.learning);
    await alignment.show(found.alignment);
  }

  async function charts() {
    await curves();
    const took = await get(api("participation"));
    participation.element.hidden = !took.kinds.length;
    if (took.kinds.length) {
      const totals = took.kinds.map((k) => `${k.name} ${k.counts.reduce((a, b) => a + b, 0).toLocaleString("en")}`).join(", ");
      await participation.show({ ...took, title: "Clients x rounds", x: "round", y: "client", good: "answered", height: Math.min(320, 100 + 16 * took.rows.length), told: `Who took part: ${totals}.` }, `Answers: ${totals}. Blue: answered; orange: asked, but the answer does not count; blank: not asked.`);
    }
    await hosts.refresh();
    const held = await get(api("partition"));
    partition.element.hidden = !held.clients;
    if (held.clients) {
      await partition.show({ kind: "shares", x: held.sorted ? "clients, sorted by their most frequent class" : "client", height: held.shares ? 380 : 220, told: held.table.map((r) => r.join(": ")).join("; "), ...held }, "Above: the share of each class in each client; below: training examples per client.");
      refill(partition.extra, table("The partition", null, held.table));
    }
  }

  async function show(run) {
    problem.hidden = true;
    const before = known?.state;
    known = run;
    title(`${run.name} ${run.id}`);
    live(run.state === "running" ? `live · round ${run.done.toLocaleString("en")} of ${run.planned.toLocaleString("en")}` : run.state);
    refill(head, h("h1", null, run.name), h("p", { class: "muted" }, `run ${at} · experiment ${run.hash.slice(0, 12)}`),
      h("p", null, state(run.state), " ", h("progress", { max: run.planned, value: run.done, "aria-label": "rounds done" }), ` ${run.done.toLocaleString("en")} of ${run.planned.toLocaleString("en")} rounds`),
      h("nav", { "aria-label": "On this page" }, h("ul", { class: "contents" }, [["learning", "Learning"], ["summary", "Summary"], ["participation", "Participation"], ["hosts", "Hosts"], ["data", "Data"], ["settings", "Settings"], ["commands", "Commands"]].map(([id, text]) => h("li", null, h("a", { href: `#${id}` }, text))))));
    refill(summary, table("What the run did", null, run.summary));
    if (axes !== JSON.stringify(run.axes)) {
      axes = JSON.stringify(run.axes);
      axisBar.replaceChildren(choice("Against", run.axes, axis, (value) => { axis = value; curves().catch(failed); }));
    }
    if (!settings.childElementCount) {
      settings.replaceChildren(...[["Experiment", run.settings], ["Machines", run.where], ["Numerics", run.numerics], ["Data", run.data]].map(([name, rows]) => folded(name, rows)).filter(Boolean));
    }
    const text = JSON.stringify(run.commands);
    if (commands.dataset.shown !== text) {
      commands.dataset.shown = text;
      refill(commands, run.commands.map(([word, line]) => command(word, line)));
    }
    if (before !== run.state) refill(lineage, origin(run.lineage, []));
    await charts().catch(failed);
    if (before !== run.state) get(api("forks")).then((forks) => refill(lineage, origin(run.lineage, forks)), () => {});
  }

  function failed(message) {
    problem.textContent = message.message ?? message;
    problem.hidden = false;
    if (!known) { title("not to be shown"); head.replaceChildren(h("h1", null, "This cannot be shown"), h("p", null, h("a", { href: "/" }, "All runs"))); }
  }

  follow(api("run"), show, failed);
}

function part(name, id) {
  const drawn = figure(false), extra = h("div");
  return { element: h("section", { "aria-labelledby": id, hidden: true }, h("h2", { id }, name), drawn.element, extra), extra, show: drawn.show };
}

/** The timeline of hosts and gangs, which can be gone through by buttons. */
function timeline(api, problem) {
  const drawn = figure(false), list = h("div"), told = h("span");
  let window_ = null, span = [0, 0];
  const move = (text, label, change) => h("button", { type: "button", "aria-label": label, click: () => {
    const [a, b] = window_ ?? span;
    let [from, to] = change(a, b, b - a);
    from = Math.max(span[0], from);
    to = Math.min(span[1], to);
    window_ = from <= span[0] && to >= span[1] ? null : [from, to];
    refresh().catch((e) => { problem.textContent = e.message; problem.hidden = false; });
  } }, text);
  const bar = h("div", { class: "bar", role: "group", "aria-label": "Stretch of time" },
    move("+", "Zoom in", (a, b, w) => [a + w / 4, b - w / 4]), move("−", "Zoom out", (a, b, w) => [a - w / 2, b + w / 2]),
    move("◀", "Earlier", (a, b, w) => (a - w / 2 < span[0] ? [span[0], span[0] + w] : [a - w / 2, b - w / 2])),
    move("▶", "Later", (a, b, w) => (b + w / 2 > span[1] ? [span[1] - w, span[1]] : [a + w / 2, b + w / 2])),
    move("All", "The whole run", () => span), told);
  const element = h("section", { "aria-labelledby": "hosts", hidden: true }, h("h2", { id: "hosts" }, "Hosts and gangs"), bar, drawn.element, list);
  async function refresh() {
    const found = await get(api("hosts", window_ ? `?from=${window_[0]}&to=${window_[1]}` : ""));
    span = found.span;
    element.hidden = !found.hosts.length;
    if (!found.hosts.length) return;
    told.textContent = `${found.attempts.toLocaleString("en")} attempts from ${number(found.window[0])} to ${number(found.window[1])} s`;
    const trouble = found.troubled_of ? `; ${found.troubled_of.toLocaleString("en")} were not answered or made again` : "";
    await drawn.show({ kind: "hosts", height: Math.min(600, 90 + 28 * found.hosts.length), told: `When ${found.hosts.length} hosts worked: ${told.textContent}${trouble}.`, ...found },
      `${found.bars ? "Each bar is an attempt at a gang" : "How busy hosts were; zoom in to see each gang"}. Orange: not answered, or made again${trouble}.`);
    refill(list, table("Hosts over the whole run", ["host", "attempts", "not answered", "busy", "median of a gang", "clients, once per phase"],
      found.hosts.map((x) => [x.name, number(x.attempts), number(x.unanswered), percent(x.busy), seconds(x.median_s), number(x.clients)])));
  }
  return { element, refresh };
}

function origin(lineage, forks) {
  const said = [];
  if (lineage.parent) said.push(h("p", null, "Forked from ", link("run", lineage.parent.run), ` after round ${lineage.parent.round}.`));
  if (lineage.sweep) said.push(h("p", null, "A trial of ", link("sweep", lineage.sweep), "."));
  if (lineage.changes.length) said.push(h("p", null, `Changed on the way: ${lineage.changes.join(", ")}`));
  if (forks.length) said.push(h("p", null, "Forks: ", forks.map((at, i) => [i ? ", " : "", link("run", at)])));
  return said.length ? [h("h3", null, "Lineage"), ...said] : [];
}
