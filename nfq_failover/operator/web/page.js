"use strict";
// Draws the status, once a second. Text from the daemon is only ever put in as text.

const SVG = "http://www.w3.org/2000/svg";
const GOOD = ["protected", "shadowing"];
const byId = (id) => document.getElementById(id);

function make(name, text, attributes = {}) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function draw(svg, name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  svg.append(node);
  return node;
}

function clear(svg) {
  for (const node of [...svg.childNodes]) if (node.nodeName !== "title") node.remove();
}

function bytes(count) {
  if (count < 10000) return `${count} B`;
  return count < 1e7 ? `${Math.round(count / 1000)} kB` : `${Math.round(count / 1e6)} MB`;
}

function moment(agoSeconds) {
  // As the log and the commands have it: 2026-11-30 20:10:10, in the time of whoever looks.
  const at = new Date(Date.now() - agoSeconds * 1000);
  return new Date(at - at.getTimezoneOffset() * 60000).toISOString().slice(0, 19).replace("T", " ");
}

function kind(state) {
  if (GOOD.includes(state)) return "good";
  return state === "unprotected" || state === "refused" ? "bad" : "odd";
}

function box(svg, x, title, lines, mark, serves) {
  draw(svg, "rect", { x, y: 110, width: 300, height: 120, rx: 10, class: `box ${mark}` });
  draw(svg, "text", { x: x + 16, y: 138, class: "strong" }, title);
  lines.forEach((line, row) => draw(svg, "text", { x: x + 16, y: 162 + 22 * row, class: "small" }, line));
  const wire = serves ? "wire good" : "wire";
  draw(svg, "path", { d: `M450 58 C450 90 ${x + 150} 70 ${x + 150} 110`, class: wire, "stroke-dasharray": serves ? "" : "3 6" });
}

function wrong(found) {
  return found.length ? `what is wrong there: ${found.length}, see below` : "nothing wrong is known";
}

function hosts(status) {
  const svg = byId("hosts");
  const peer = status.peer;
  const serves = status.role === "primary";
  const beat = peer.heartbeat;
  const own = status.concerns.filter((each) => !each.host);
  const its = status.concerns.filter((each) => each.host === peer.name);
  clear(svg);
  draw(svg, "rect", { x: 330, y: 14, width: 240, height: 44, rx: 22, class: "box" });
  draw(svg, "text", { x: 450, y: 42, "text-anchor": "middle" }, "clients of the service");
  box(svg, 40, `${status.name} (this host)`, [
    `${status.role}, ${status.state}`, `epoch ${status.epoch}, version ${status.versions.own}`,
    wrong(own)], kind(status.state), serves);
  box(svg, 560, peer.name, [
    peer.lost ? "silent" : `alive, ${serves ? "shadows this host" : status.role === "backup" ? "serves" : "heard"}`,
    `${peer.address}, version ${status.versions.peer || "not told"}`,
    wrong(its)], peer.lost ? "bad" : "good", status.role === "backup" && !peer.lost);
  draw(svg, "path", { d: "M340 170 H560", class: peer.lost ? "wire bad" : "wire good" });
  draw(svg, "text", { x: 450, y: 162, "text-anchor": "middle", class: "small" }, peer.lost ? "no heartbeats" : `heartbeats, ${beat.interval_ms} ms`);
  draw(svg, "text", { x: 450, y: 192, "text-anchor": "middle", class: "small" }, `${beat.missed} missed`);
  byId("hosts-text").textContent = `${status.name}: ${status.role}, ${status.state}. ${peer.name}: ${peer.lost ? "silent" : "alive"}.`;
}

function concerns(status) {
  const items = status.concerns.map((each) => {
    const item = make("li", undefined, { class: each.weight });
    item.append(make("strong", `${each.weight}: `), `${each.host || status.name}: ${each.what}`);
    if (each.cure) item.append(make("span", `What to do: ${each.cure}`, { class: "cure" }));
    return item;
  });
  byId("concerns").replaceChildren(...(items.length ? items : [make("li", "Nothing that the daemons know of.")]));
}

function takeover(status) {
  const svg = byId("takeover");
  const took = status.takeover;
  clear(svg);
  svg.toggleAttribute("hidden", !took);
  svg.style.display = took ? "" : "none";
  if (!took) {
    byId("takeover-text").textContent = "There was none since its daemon was started.";
    return;
  }
  const known = took.connections + took.reset;
  const wentOn = known ? `${took.connections} of ${known} connections went on.` : "there were no connections.";
  byId("takeover-text").textContent = `${moment(took.ago_s)}: ${wentOn}`;
  // A row for each step: how long it took, and when it was over, reckoned from the last sign of life.
  const phases = took.phases.filter(([, after]) => after !== null);
  const end = Math.max(1, ...phases.map(([, after]) => after));
  const place = (ms) => 230 + (ms / end) * 540;
  svg.setAttribute("viewBox", `0 0 900 ${50 + 30 * phases.length}`);
  draw(svg, "text", { x: 20, y: 26, class: "small" }, "the other host was heard for the last time at 0 ms; then was reached:");
  let before = 0;
  phases.forEach(([what, after], number) => {
    const y = 40 + 30 * number;
    draw(svg, "text", { x: 20, y: y + 17 }, what);
    draw(svg, "rect", { x: place(before), y, width: Math.max(place(after) - place(before), 2), height: 22, class: "bar" });
    draw(svg, "text", { x: place(after) + 8, y: y + 17, class: "small" }, `${Math.round(after)} ms`);
    before = after;
  });
}

function connections(status) {
  const rows = status.connections.map((row) => {
    const line = make("tr");
    line.append(make("td", row.client), make("td", row.server));
    line.append(make("td", row.protected ? "protected" : `not protected: ${row.reason}`, { class: row.protected ? "good" : "bad" }));
    line.append(make("td", bytes(row.lag_bytes), { class: "number" }), make("td", bytes(row.lag_out_bytes), { class: "number" }));
    return line;
  });
  const guarded = status.connections.filter((row) => row.protected).length;
  const all = status.connections_in_all;
  byId("count").textContent = all > rows.length ? `(${all}; the first ${rows.length} are shown)` : `(${all}, ${guarded} protected)`;
  byId("connections").replaceChildren(...rows);
}

function events(status) {
  const found = status.happenings.map((each) => ({ ago: each.ago_s, what: `${each.role}, ${each.state}, epoch ${each.epoch}`, why: each.reason }));
  for (const each of status.mishaps) {
    found.push({ ago: each.ago_s, what: `${each.what}${each.count > 1 ? ` (${each.count} times)` : ""}`, why: `${each.reason} ${each.client}` });
  }
  found.sort((one, other) => one.ago - other.ago);
  byId("events").replaceChildren(...found.map((each) => {
    const line = make("tr");
    line.append(make("td", moment(each.ago)), make("td", each.what), make("td", each.why));
    return line;
  }));
}

function show(status) {
  const verdict = byId("verdict");
  byId("name").textContent = status.name;
  verdict.className = kind(status.state);
  verdict.textContent = GOOD.includes(status.state) ? `${status.state}: a failure of the host that serves ends no connection that is listed as protected` : status.state;
  byId("reason").textContent = status.reason;
  byId("versions").textContent = `Version ${status.versions.own}; the other host's: ${status.versions.peer || "not told"}.`;
  document.title = `${status.name}: ${status.state}`;
  hosts(status); concerns(status); takeover(status); connections(status); events(status);
}

async function turn() {
  try {
    const answer = await fetch("status.json", { cache: "no-store" });
    const status = await answer.json();
    if (!answer.ok) throw new Error(status.error);
    show(status);
  } catch (error) {
    byId("verdict").className = "bad";
    byId("verdict").textContent = "no answer";
    byId("reason").textContent = error.message;
    document.title = "no answer";
  }
  setTimeout(turn, 1000);
}

turn();
