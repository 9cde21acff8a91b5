// A sweep: its best settings, maps, how much settings matter, parallel coordinates, trials.
import { figure, figures } from "./charts.js";
import { command, follow, h, link, live, main, refill, state, table, title } from "./page.js";

export function start(at) {
  const problem = h("p", { class: "bad", role: "alert", hidden: true });
  const head = h("div"), best = h("div"), trials = h("div"), commands = h("div");
  const sections = ["maps", "sensitivity", "learning"].map((id) => [id, figures()]);
  const all = figure(false);
  const names = { maps: "Maps", sensitivity: "How much each setting matters", learning: "Learning" };
  const blocks = Object.fromEntries(sections.map(([id, f]) => [id, h("section", { hidden: true }, h("h2", null, names[id]), f.element)]));
  const settings = h("section", { hidden: true }, h("h2", null, "All settings"), all.element);
  main(problem, head, best, Object.values(blocks), settings, h("h2", null, "Trials"), trials, h("h2", null, "Go on, repeat, report"), commands);

  follow(`/api/sweep/${at.split("/").map(encodeURIComponent).join("/")}`, async (found) => {
    problem.hidden = true;
    title(`sweep ${found.name}`);
    live(found.state === "running" ? `live · ${found.over.toLocaleString("en")} trials over` : found.state);
    refill(head, h("h1", null, found.name), h("p", { class: "muted" }, `sweep ${at}`), h("p", null, state(found.state), ` ${found.over.toLocaleString("en")} of ${found.planned.toLocaleString("en")} trials`), table("What was searched", null, found.what));
    refill(best, (found.best.rows.length ? [h("h2", null, "The best settings"), table("Chosen on validation data, run again with seeds that the search has not seen", found.best.header, found.best.rows)] : [h("p", { class: "muted" }, "No trial has finished.")]));
    for (const [id, drawn] of sections) {
      blocks[id].hidden = !found[id].length;
      await drawn.show(found[id]);
    }
    settings.hidden = !found.parallel;
    if (found.parallel) await all.show({ ...found.parallel, height: 340, told: "Parallel coordinates of all trials." }, "Each line is a trial; those that diverged or failed are grey.");
    refill(trials, table("The best first", found.trials.header, found.trials.rows.map((row, i) => {
      const runs = found.trials.runs[i];
      return [row[0], ...row.slice(1), h("span", null, runs.map((run, k) => [k ? ", " : "", link("run", `${at}/${run}`, run.split("/").at(-1))]))];
    })));
    refill(commands, found.commands.map(([word, line]) => command(word, line)));
  }, (message) => { problem.textContent = message; problem.hidden = false; if (!head.childElementCount) head.replaceChildren(h("h1", null, "This cannot be shown"), h("p", null, h("a", { href: "/" }, "All runs"))); });
}
