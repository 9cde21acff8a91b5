// All runs and sweeps: search, filter, sort, choose some to compare.
import { follow, h, link, live, main, number, refill, state, title, trouble } from "./page.js";

const SHOWN = 200;
const STATES = ["all", "running", "finished", "stopped", "diverged", "below_quorum", "failed", "damaged"];
const KINDS = [["all", "Runs and sweeps"], ["run", "Runs"], ["sweep", "Sweeps"]];
const COLUMNS = [
  ["name", "Run", (r) => r.at], ["state", "State", (r) => r.state], ["progress", "Done", (r) => r.done / (r.planned || 1)],
  ["value", "Newest value", (r) => r.value ?? -Infinity], ["algorithm", "Algorithm", (r) => r.algorithm ?? ""],
  ["data", "Data", (r) => r.data ?? ""], ["seed", "Seed", (r) => Number(r.seed ?? 0)], ["started", "Started (UTC)", (r) => r.started ?? ""],
];

export function start(_, query) {
  title("runs");
  const chosen = new Set();
  let found = { rows: [], pending: 1, root: "", note: "" }, limit = SHOWN;
  let sort = query.get("sort") ?? "started", down = query.get("order") !== "up";

  const search = h("input", { type: "search", placeholder: "Search names, algorithms, data …", "aria-label": "Search runs", value: query.get("q") ?? "", input: () => { limit = SHOWN; draw(); } });
  const states = h("select", { "aria-label": "State", change: draw }, STATES.map((s) => h("option", { value: s, selected: s === query.get("state") }, s === "all" ? "all states" : s.replace("_", " "))));
  const kinds = h("select", { "aria-label": "Kind", change: draw }, KINDS.map(([k, text]) => h("option", { value: k, selected: k === query.get("kind") }, text)));
  const compare = h("button", { type: "button", disabled: true, click: () => { location.href = `/compare?runs=${[...chosen].map(encodeURIComponent).join(",")}`; } }, "Compare");
  const count = h("span", { role: "status" });
  const head = h("tr");
  const body = h("tbody");
  const more = h("button", { type: "button", click: () => { limit += 1000; draw(); } }, "Show more");
  const empty = h("p", { class: "muted" });
  main(h("h1", null, "Runs"), h("div", { class: "bar", role: "search" }, search, states, kinds, compare), count,
    h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Runs and sweeps" },
      h("table", { class: "full" }, h("thead", null, head), body)), empty, more);

  function remember() {
    const kept = new URLSearchParams();
    if (search.value) kept.set("q", search.value);
    if (states.value !== "all") kept.set("state", states.value);
    if (kinds.value !== "all") kept.set("kind", kinds.value);
    if (sort !== "started") kept.set("sort", sort);
    if (!down) kept.set("order", "up");
    history.replaceState(null, "", kept.size ? `/?${kept}` : "/");
  }

  function draw() {
    remember();
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const key = COLUMNS.find(([name]) => name === sort)?.[2] ?? COLUMNS.at(-1)[2];
    const rows = found.rows.filter((r) =>
      (states.value === "all" || r.state === states.value) && (kinds.value === "all" || r.kind === kinds.value) &&
      words.every((w) => `${r.at} ${r.algorithm ?? ""} ${r.data ?? ""} ${r.state} seed ${r.seed ?? ""}`.toLowerCase().includes(w)));
    rows.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (down ? -1 : 1));
    refill(head, h("th", { scope: "col" }, "Choose"), ...COLUMNS.map(([name, text]) => h("th", {
      scope: "col", class: ["algorithm", "data", "seed"].includes(name) && "optional",
      "aria-sort": name === sort ? (down ? "descending" : "ascending") : null,
    }, h("button", { type: "button", click: () => { [sort, down] = [name, name === sort ? !down : true]; draw(); } }, text, name === sort ? (down ? " ↓" : " ↑") : ""))));
    refill(body, rows.slice(0, limit).map(line));
    more.hidden = rows.length <= limit;
    empty.hidden = rows.length > 0;
    empty.textContent = found.pending ? "Reading …" : found.rows.length ? "No run fits the search." : found.note || "There are no runs here yet: `raygrad run` makes one.";
    const reading = found.pending ? `; ${found.pending.toLocaleString("en")} are still being read` : "";
    count.textContent = `${rows.length.toLocaleString("en")} of ${(found.rows.length + found.pending).toLocaleString("en")}${reading}${found.note ? ` · ${found.note}` : ""}`;
    compare.disabled = chosen.size < 2;
    compare.textContent = chosen.size > 1 ? `Compare ${chosen.size}` : "Compare";
  }

  function line(r) {
    const box = r.kind === "run" && r.state !== "damaged" && h("input", {
      type: "checkbox", "aria-label": `Choose ${r.at}`, checked: chosen.has(r.at),
      change: (event) => { chosen[event.target.checked ? "add" : "delete"](r.at); draw(); },
    });
    const began = r.started ? `${r.started.slice(0, 4)}-${r.started.slice(4, 6)}-${r.started.slice(6, 8)} ${r.started.slice(9, 11)}:${r.started.slice(11, 13)}` : "";
    const unit = r.kind === "sweep" ? "trials" : "rounds";
    const name = h("th", { scope: "row" }, link(r.kind, r.at), r.kind === "sweep" && " (sweep)", r.parent && h("span", { class: "muted" }, ` fork of ${r.parent}`));
    if (r.state === "damaged") return h("tr", null, h("td"), name, h("td", null, state(r.state)), h("td", { colspan: "6", class: "bad" }, r.message));
    return h("tr", null, h("td", null, box), name, h("td", { title: r.state !== "running" && r.message }, state(r.state)),
      h("td", null, `${r.done.toLocaleString("en")} of ${r.planned.toLocaleString("en")} ${unit}`),
      h("td", null, r.value == null ? "–" : `${number(r.value)} ${r.measure}`),
      h("td", { class: "optional" }, r.algorithm ?? ""), h("td", { class: "optional" }, r.data ?? ""), h("td", { class: "optional" }, r.seed ?? ""), h("td", null, began));
  }

  const again = follow("/api/list", (value) => {
    const same = JSON.stringify(value) === JSON.stringify(found);
    found = value;
    document.getElementById("root").textContent = value.root;
    const running = value.rows.filter((r) => r.state === "running").length;
    live(running ? `${running} running` : "");
    if (!same) draw();
    if (value.pending) setTimeout(again, 200);
  }, trouble);
}
