// Several runs side by side: mean and spread over seeds, and what sets them apart.
import { figures } from "./charts.js";
import { choice, follow, h, link, live, main, refill, state, table, title } from "./page.js";

export function start(_, query) {
  const runs = query.get("runs") ?? "";
  let axis = query.get("axis") ?? "communications", target = query.get("target") ?? "", axes = "";
  const problem = h("p", { class: "bad", role: "alert", hidden: true });
  const costs = h("div"), differences = h("div"), list = h("div"), bar = h("div");
  const learning = figures(), alignment = figures(), probed = h("div", null, h("h2", null, "Gradient alignment"), alignment.element);
  const goal = h("input", { type: "number", min: "0", max: "1", step: "0.01", "aria-label": "Target accuracy", value: target, change: () => { target = goal.value; again(); } });
  title("comparison");
  main(h("h1", null, "Comparison"), problem, costs, h("label", { class: "bar" }, h("span", null, "Target accuracy"), goal),
    h("h2", null, "Learning"), bar, learning.element, probed, h("h2", null, "What sets them apart"), differences, h("h2", null, "Runs"), list);

  const address = () => {
    const kept = new URLSearchParams({ runs, axis });
    if (target) kept.set("target", target);
    return `/api/compare?${kept}`;
  };
  const ask = follow(address(), async (found) => {
    problem.hidden = true;
    history.replaceState(null, "", address().replace("/api", ""));
    const running = found.runs.filter((r) => r.state === "running").length;
    live(running ? `live · ${running} running` : "");
    if (axes !== JSON.stringify(found.axes)) {
      axes = JSON.stringify(found.axes);
      refill(bar, choice("Against", found.axes, axis, (value) => { axis = value; again(); }));
    }
    goal.placeholder = found.target ?? "";
    refill(costs, table("Mean ± standard deviation over seeds", found.table.header, found.table.rows),
      h("p", { class: "muted" }, found.target == null ? "No run has an accuracy to set a target by." : `Target accuracy ${found.target}: ${found.target_from}. A FedGA round is two communications.`));
    refill(differences, found.differences.rows.length ? table("Settings that differ", found.differences.header, found.differences.rows) : h("p", null, "The runs differ in their seed only."));
    refill(list, table("Runs", ["run", "group", "seed", "rounds", "state"], found.runs.map((r) => [link("run", r.at), r.group, r.seed, `${r.done} of ${r.planned}`, state(r.state)])));
    await learning.show(found.learning);
    probed.hidden = !found.alignment.length;
    await alignment.show(found.alignment);
  }, (message) => { problem.textContent = message; problem.hidden = false; });
  const again = () => ask(address());
}
