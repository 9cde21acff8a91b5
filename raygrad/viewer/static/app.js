// Which page it is, and the choice of the ground.
import { trouble } from "./page.js";

const parts = location.pathname.split("/").map(decodeURIComponent);
const PAGES = { "": "./list.js", run: "./run.js", sweep: "./sweep.js", compare: "./compare.js" };

const GROUNDS = ["system", "light", "dark"];
const button = document.getElementById("theme");
const ground = () => document.documentElement.dataset.theme ?? "system";
button.textContent = `Theme: ${ground()}`;
button.addEventListener("click", () => {
  const next = GROUNDS[(GROUNDS.indexOf(ground()) + 1) % GROUNDS.length];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  localStorage.setItem("theme", next);
  button.textContent = `Theme: ${next}`;
  window.dispatchEvent(new Event("ground"));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => window.dispatchEvent(new Event("ground")));

try {
  const page = await import(PAGES[parts[1]] ?? "./list.js");
  page.start(parts.slice(2).join("/"), new URLSearchParams(location.search));
} catch (error) {
  trouble(String(error.message ?? error));
}
