// What pages are made of: elements, tables, requests that are repeated while something may change.

/** An element with attributes (functions listen, `false` and `null` are left out) and children; text is never markup. */
export function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((c) => c != null && c !== false));
  return element;
}

/** A table whose first column names the rows. Cells are text or elements. */
export function table(caption, header, rows, attributes) {
  const cell = (content, i) => (i ? h("td", null, content) : h("th", { scope: "row" }, content));
  return h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": caption },
    h("table", attributes,
      h("caption", null, caption),
      header && h("thead", null, h("tr", null, header.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", null, rows.map((row) => h("tr", null, row.map(cell))))));
}

export function folded(title, rows) {
  if (!rows.length) return null;
  return h("details", null, h("summary", null, title), table(title, null, rows));
}

export function state(name) {
  return h("span", { class: `state ${name}` }, name.replace("_", " "));
}

/** A link to a run or sweep under the run root. */
export function link(kind, at, text) {
  return h("a", { href: `/${kind}/${at.split("/").map(encodeURIComponent).join("/")}` }, text ?? at);
}

export function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

/** A number with about four digits. */
export function number(value) {
  if (value == null) return "–";
  if (value === 0 || Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

export function seconds(value) {
  if (value < 600) return `${number(value)} s`;
  return value < 36000 ? `${(value / 60).toFixed(1)} min` : `${(value / 3600).toFixed(1)} h`;
}

/** The JSON at an address. Throws Error with the server's one line. */
export async function get(address, signal) {
  const response = await fetch(address, { signal });
  if (!response.ok) throw new Error(await explained(response));
  return response.json();
}

async function explained(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error;
  } catch {
    return text || `${response.status} ${response.statusText}`;
  }
}

const EVERY_MS = 2000;

/** Asks now and then every two seconds while the page is looked at; `show` gets what is new, `failed` an error's line.
 *  Returns a function that asks at once, for another address if one is given. */
export function follow(address, show, failed) {
  let tag = null, current = address, timer = 0, turn = 0, down = false;
  async function ask() {
    clearTimeout(timer);
    const mine = ++turn;
    let response = null, value = null;
    try {
      response = await fetch(current, { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
      if (response.ok) value = await response.json();
    } catch {
      response = null;
    }
    if (mine !== turn) return;
    if (!response || down) live(response ? "" : "the viewer does not answer; is it still running?");
    down = !response;
    if (response?.ok) {
      tag = response.headers.get("ETag");
      try {
        await show(value);
      } catch (error) {
        failed(`this cannot be drawn: ${error.message ?? error}`);
      }
    } else if (response && response.status !== 304) {
      failed(await explained(response).catch(() => response.statusText));
    }
    if (mine === turn) timer = setTimeout(again, EVERY_MS);
  }
  function again() {
    if (document.hidden) timer = setTimeout(again, EVERY_MS);
    else ask();
  }
  ask();
  return (other) => {
    if (other && other !== current) [current, tag] = [other, null];
    return ask();
  };
}

/** A line at the top right. */
export function live(text) {
  const place = document.getElementById("live");
  if (place.textContent !== text) place.textContent = text;
}

export function title(text) {
  document.title = `${text} · raygrad`;
}

export function main(...children) {
  document.getElementById("main").replaceChildren(...children.flat(Infinity).filter(Boolean));
}

/** Other children for an element, where the focus stays on what is there again under its name, else at its place, and
 *  wide tables stay scrolled. */
export function refill(place, ...children) {
  const name = (e) => e.getAttribute("aria-label") ?? e.getAttribute("href") ?? e.textContent;
  const stops = () => [...place.querySelectorAll("a, button, input, summary, [tabindex]")];
  const wide = () => [...place.querySelectorAll(".wide")];
  const focused = document.activeElement, at = stops().indexOf(focused), scrolled = wide().map((e) => e.scrollLeft);
  place.replaceChildren(...children.flat(Infinity).filter(Boolean));
  wide().forEach((e, i) => { e.scrollLeft = scrolled[i] ?? 0; });
  if (at < 0) return;
  const now = stops();
  (now.find((e) => name(e) === name(focused)) ?? now[at])?.focus({ preventScroll: true });
}

export function trouble(message) {
  title("not to be shown");
  main(h("h1", null, "This cannot be shown"), h("p", { class: "bad", role: "alert" }, message),
    h("p", null, h("a", { href: "/" }, "All runs")));
}

/** Buttons of which one is pressed. */
export function choice(label, options, chosen, choose) {
  const buttons = options.map(([value, text]) => h("button", {
    type: "button", "aria-pressed": String(value === chosen),
    click: (event) => {
      for (const b of buttons) b.setAttribute("aria-pressed", String(b === event.currentTarget));
      choose(value);
    },
  }, text));
  return h("div", { class: "bar", role: "group", "aria-label": label }, h("span", null, label), buttons);
}

export function command(word, line) {
  const copy = h("button", { type: "button", "aria-label": `Copy the command to ${word}`, click: async () => {
    await navigator.clipboard.writeText(line);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  } }, "Copy");
  return h("div", { class: "command" }, h("pre", { tabindex: "0", "aria-label": `Command to ${word}` }, line), copy);
}
