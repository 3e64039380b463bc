"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { evaluation, layers, policies, subject, texts: domains } = data;
const COLOURS = {
  profile: "profile", oracle: "oracle", uniform: "uniform",
  lru: "lru", seeded_lru: "lru", lfu: "lfu", seeded_lfu: "lfu", tail: "tail",
};
const SHORT = {
  profile: "profile", oracle: "oracle", uniform: "uniform", lru: "LRU", lfu: "LFU", seeded_lru: "seeded LRU",
  seeded_lfu: "seeded LFU", tail: "recency tail",
};
const SEEDED = ["seeded_lru", "seeded_lfu", "tail"];
const FIXED = ["oracle", "profile", "uniform"];
const CIVIDIS = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120], [165, 156, 116],
  [195, 179, 105], [225, 204, 85], [254, 232, 56]];
const DIVERGING = [[45, 0, 75], [128, 115, 172], [216, 218, 235], [247, 247, 247], [254, 224, 182], [224, 130, 20], [127, 59, 8]];

/* Numbers and words */

const $ = (id) => document.getElementById(id);
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
const count = (n) => n.toLocaleString("en");
const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; n >= 1000 && unit < units.length - 1; unit++) n /= 1000;
  return `${n >= 100 || unit === 0 ? n.toFixed(0) : n.toPrecision(3)} ${units[unit]}`;
}

function joined(parts) {
  const added = (key) => parts[0][key].map((row, l) => row.map((_, e) => sum(parts.map((part) => part[key][l][e]))));
  const total = (key) => sum(parts.map((part) => part[key]));
  return {
    name: "all text", profile: added("profile"), held_out: added("held_out"),
    profile_tokens: total("profile_tokens"), held_out_tokens: total("held_out_tokens"),
  };
}

/* Numbers of experts, counted through the layers, hottest first. */
function ranking(counts) {
  const flat = counts.flat();
  return flat.map((_, key) => key).sort((a, b) => flat[b] - flat[a] || a - b);
}

function curve(ranked, counts) {
  const flat = counts.flat(), total = sum(flat);
  let held = 0;
  return [0, ...ranked.map((key) => (held += flat[key]) / total)];
}

/* What is shown: all texts together, if there are several, then each */

const several = domains.length > 1;
const every = several ? joined(domains) : domains[0];
const texts = several ? [every, ...domains] : domains;
const scoredOf = [evaluation.together, ...(several ? evaluation.domains : [])];
const shares = evaluation.together.shares;
const state = { text: 0, share: Math.max(0, shares.findIndex((at) => at.share >= 0.25)), at: null };

const profileRanking = ranking(every.profile);
const place = [];
profileRanking.forEach((key, i) => { place[key] = i; });
const firstKey = every.profile.map((_, l) => sum(every.profile.slice(0, l).map((row) => row.length)));
const isResident = (layer, expert) => place[firstKey[layer] + expert] < shares[state.share].slots;

/* Elements: text is only ever set as text. */

function el(tag, attributes = {}, ...children) {
  const made = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("--")) made.style.setProperty(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/* Heads are words or th, cells words or td; the first of a row is its head. */
function table(caption, head, rows) {
  const cell = (value, i) => value instanceof Node ? value : i ? el("td", {}, value) : el("th", { scope: "row" }, value);
  return el("table", {}, el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...head.map((name) => name instanceof Node ? name : el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell)))));
}

function swatch(name) {
  const kind = name.startsWith("seeded") ? "swatch hollow" : "swatch";
  return el("span", { class: kind, "--colour": `var(--${COLOURS[name]})`, "aria-hidden": "true" });
}

/* Summary */

function showSummary() {
  const scored = scoredOf[state.text], at = scored.shares[state.share], found = at.policies;
  const size = at.slots * evaluation.slot_bytes;
  const best = Object.keys(found).filter((name) => !FIXED.includes(name))
    .reduce((a, b) => found[a].pairs >= found[b].pairs ? a : b);
  const name = several && state.text ? `held-out text of ${texts[state.text].name}` : "text it never saw";
  $("summary").replaceChildren(
    el("p", {}, `The profile counted ${plural(every.profile_tokens, "token")} of ${plural(domains.length, "text")}. `
      + `It is scored on ${plural(scored.tokens, "token")} held out of it.`),
    el("p", {}, "With ", el("strong", {}, percent(at.share, 0)), ` of the experts resident (${count(at.slots)} of `
      + `${count(evaluation.experts)}, ${bytes(size)}) the profile hits `, el("strong", {}, percent(found.profile.pairs)),
      ` of routed pairs on ${name}: ${percent(found.profile.pairs / found.oracle.pairs)} of what an oracle hits that knows the `
      + `text, ${(found.profile.pairs / found.uniform.pairs).toFixed(2)} times what any experts would. `
      + `Misses move ${bytes(found.profile.bytes_per_token)} a token over PCIe.`),
    el("p", {}, `The best cache, ${policies[best]}, hits ${percent(found[best].pairs)} and moves `
      + `${bytes(found[best].bytes_per_token)} a token.`),
    ...worstTransfer());
}

function worstTransfer() {
  const foreign = evaluation.transfers.filter((t) => t.profile !== t.text);
  if (!foreign.length) return [];
  const kept = (t) => t.shares[state.share].policies.profile.pairs / t.shares[state.share].policies.oracle.pairs;
  const worst = foreign.reduce((a, b) => kept(a) <= kept(b) ? a : b);
  const found = worst.shares[state.share].policies, won = worst.regained[state.share];
  const chance = found.profile.pairs < found.uniform.pairs ? ", fewer than any experts would" : "";
  const caches = SEEDED.map((name) => {
    const { half, most } = won[name];
    const words = half === null ? "never wins back half of the gap"
      : `wins back half of the gap within ${plural(half, "token")} and 90% ${most === null ? "never" : `within ${count(most)}`}`;
    return `A ${SHORT[name]} hits ${percent(found[name].pairs)} and ${words}.`;
  });
  return [el("p", {}, `At worst, profiled on ${worst.profile} and used on ${worst.text}, it hits `,
    el("strong", {}, percent(found.profile.pairs)), `${chance}, where the oracle hits ${percent(found.oracle.pairs)}. `,
    caches.join(" "))];
}

/* Policies at the chosen share */

function showPolicies() {
  const found = scoredOf[state.text].shares[state.share].policies;
  const rows = Object.entries(policies).map(([name, words]) => [
    el("th", { scope: "row" }, swatch(name), words),
    el("td", { class: "bar", "--width": percent(found[name].pairs) }, percent(found[name].pairs)),
    found[name].weight === null ? "–" : percent(found[name].weight),
    bytes(found[name].bytes_per_token),
  ]);
  const caption = `${texts[state.text].name}, ${percent(shares[state.share].share, 0)} of the experts resident`;
  $("policies").replaceChildren(table(caption, ["What is resident", "Routed pairs hit", "Routing weight hit", "PCIe a token"], rows));
}

/* Coverage curves */

const BOX = { width: 860, height: 400, left: 52, right: 26, top: 12, bottom: 44 };
const toX = (share) => BOX.left + share * (BOX.width - BOX.left - BOX.right);
const toY = (hits) => BOX.height - BOX.bottom - hits * (BOX.height - BOX.top - BOX.bottom);
let curves = {};

function showCurves() {
  // In its own pixels, so that its words stay readable on a narrow page.
  BOX.width = Math.max(320, $("curves").clientWidth);
  const text = texts[state.text];
  const straight = Array.from({ length: evaluation.experts + 1 }, (_, i) => i / evaluation.experts);
  curves = {
    oracle: curve(ranking(text.held_out), text.held_out), profile: curve(profileRanking, text.held_out), uniform: straight,
  };
  const words = FIXED.map((name) => `${name} ${percent(curves[name][shares[state.share].slots])}`).join(", ");
  const svg = el("svg:svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img",
    "aria-label": `Share of routed pairs hit by share of experts resident. At ${percent(shares[state.share].share, 0)}: ${words}.` });
  for (const tick of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
    svg.append(
      el("svg:line", { class: "grid", x1: toX(0), x2: toX(1), y1: toY(tick), y2: toY(tick) }),
      el("svg:text", { x: toX(0) - 8, y: toY(tick) + 4, "text-anchor": "end" }, percent(tick, 0)),
      el("svg:text", { x: toX(tick), y: toY(0) + 18, "text-anchor": "middle" }, percent(tick, 0)));
  }
  svg.append(el("svg:text", { x: toX(0.5), y: BOX.height - 6, "text-anchor": "middle" }, "resident experts"));
  svg.append(el("svg:line", { class: "guide", x1: toX(shares[state.share].share), x2: toX(shares[state.share].share), y1: toY(0), y2: toY(1) }));
  for (const name of FIXED) svg.append(line(name, curves[name].map((hits, i) => [i / evaluation.experts, hits])));
  for (const name of Object.keys(policies).filter((name) => !FIXED.includes(name))) svg.append(...cachePoints(name));
  svg.addEventListener("pointermove", (event) => {
    const bounds = svg.getBoundingClientRect();
    const x = (event.clientX - bounds.left) / bounds.width * BOX.width;
    readCurves(Math.min(1, Math.max(0, (x - BOX.left) / (BOX.width - BOX.left - BOX.right))));
  });
  svg.addEventListener("pointerleave", () => readCurves(shares[state.share].share));
  $("curves").replaceChildren(svg);
  readCurves(shares[state.share].share);
}

function line(name, points, dash = "none") {
  return el("svg:polyline", { points: points.map(([share, hits]) => `${toX(share).toFixed(1)},${toY(hits).toFixed(1)}`).join(" "),
    fill: "none", stroke: `var(--${COLOURS[name]})`, "stroke-width": name === "oracle" ? 4 : 2, "stroke-dasharray": dash });
}

function cachePoints(name) {
  const points = scoredOf[state.text].shares.map((at) => [at.share, at.policies[name].pairs]);
  const hollow = name.startsWith("seeded"), colour = `var(--${COLOURS[name]})`;
  return [line(name, points, "2 3"), ...points.map(([share, hits]) => el("svg:circle", { cx: toX(share), cy: toY(hits),
    r: hollow ? 6 : 3.5, fill: hollow ? "none" : colour, stroke: colour, "stroke-width": 1.5 },
    el("svg:title", {}, `${policies[name]}: ${percent(hits)} at ${percent(share, 0)}`)))];
}

function readCurves(share) {
  const i = Math.round(share * evaluation.experts);
  $("curves-readout").textContent = `${percent(i / evaluation.experts)} resident (${count(i)} experts): `
    + FIXED.map((name) => `${name} ${percent(curves[name][i])}`).join(", ");
}

/* Heat map */

const columns = Math.max(...every.profile.map((row) => row.length));
const mean = (row) => Math.max(sum(row) / row.length, 1e-12);
const heat = (text) => text.profile.map((row) => row.map((n) => n / mean(row)));
let cells = [];

function showMap() {
  const text = texts[state.text], values = heat(text), base = heat(every);
  const differs = $("difference").checked && text !== every;
  cells = values.map((row, l) => {
    const order = row.map((_, e) => e);
    if ($("sorted").checked) order.sort((a, b) => row[b] - row[a] || a - b);
    return order.map((e) => ({ layer: l, expert: e, value: differs ? row[e] - base[l][e] : row[e] }));
  });
  const limit = cells.flat().reduce((most, cell) => Math.max(most, Math.abs(cell.value)), 1e-9);
  const colour = differs ? (value) => ramp(DIVERGING, (value / limit + 1) / 2) : (value) => ramp(CIVIDIS, Math.sqrt(value / limit));
  paint(colour);
  const scale = $("scale").getContext("2d").createImageData(256, 1);
  for (let i = 0; i < 256; i++) scale.data.set([...ramp(differs ? DIVERGING : CIVIDIS, i / 255), 255], 4 * i);
  $("scale").getContext("2d").putImageData(scale, 0, 0);
  $("scale-low").textContent = differs ? `−${limit.toFixed(1)}` : "0";
  $("scale-high").textContent = differs ? `+${limit.toFixed(1)} times the layer's mean` : `${limit.toFixed(1)} times the layer's mean`;
  $("difference-label").hidden = !several;
  $("difference").disabled = text === every;
  readCell();
}

function paint(colour) {
  const map = $("map");
  map.width = columns;
  map.height = cells.length;
  map.style.height = `${Math.min(600, Math.max(160, cells.length * 7))}px`;
  map.setAttribute("aria-label", `Heat of ${plural(layers.length, "layer")} by ${plural(columns, "expert")}, `
    + `${texts[state.text].name}. Arrow keys move through it; the table below has the hottest of each layer.`);
  const image = map.getContext("2d").createImageData(columns, cells.length), dims = $("resident").checked;
  cells.forEach((row, y) => row.forEach((cell, x) => {
    const faded = dims && !isResident(cell.layer, cell.expert);
    image.data.set([...colour(cell.value), faded ? 50 : 255], 4 * (y * columns + x));
  }));
  map.getContext("2d").putImageData(image, 0, 0);
}

function ramp(stops, at) {
  const place = Math.min(1, Math.max(0, at)) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(place));
  return stops[i].map((low, channel) => Math.round(low + (place - i) * (stops[i + 1][channel] - low)));
}

function readCell() {
  const cell = state.at && cells[state.at[1]]?.[state.at[0]];
  if (!cell) {
    $("map-readout").textContent = "Rows are layers, columns experts. Point at one, or focus the map and use the arrow keys.";
    return;
  }
  const text = texts[state.text], row = text.profile[cell.layer], n = row[cell.expert];
  const all = mean(row) * row.length;
  $("map-readout").textContent = `Layer ${layers[cell.layer]}, expert ${cell.expert}: ${plural(n, "token")} of ${count(text.profile_tokens)}, `
    + `${percent(n / all, 2)} of its layer's routed pairs, ${(n / mean(row)).toFixed(2)} times the mean; `
    + `${plural(text.held_out[cell.layer][cell.expert], "token")} held out; `
    + `${isResident(cell.layer, cell.expert) ? "resident" : "not resident"} at ${percent(shares[state.share].share, 0)}.`;
}

function listenToMap() {
  const map = $("map");
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const within = (value, size) => Math.min(size - 1, Math.max(0, value));
  map.addEventListener("pointermove", (event) => {
    const bounds = map.getBoundingClientRect();
    state.at = [within(Math.floor((event.clientX - bounds.left) / bounds.width * columns), columns),
      within(Math.floor((event.clientY - bounds.top) / bounds.height * layers.length), layers.length)];
    readCell();
  });
  map.addEventListener("keydown", (event) => {
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [x, y] = state.at ?? [0, 0], [right, down] = moves[event.key];
    state.at = [within(x + right, columns), within(y + down, layers.length)];
    readCell();
  });
}

function showLayers() {
  const rows = texts[state.text].profile.map((row, l) => {
    const order = row.map((_, e) => e).sort((a, b) => row[b] - row[a] || a - b);
    const top = order.slice(0, Math.max(1, Math.round(row.length / 10)));
    return [String(layers[l]), ...order.slice(0, 4).map((e) => `${e} (${count(row[e])})`).concat(["", "", ""]).slice(0, 4),
      percent(sum(top.map((e) => row[e])) / (mean(row) * row.length)), count(row.filter((n) => n === 0).length)];
  });
  const head = ["Layer", "Hottest (tokens)", "second", "third", "fourth", "Held by the hottest 10%", "Never used"];
  $("layers").replaceChildren(table(`Experts of ${texts[state.text].name}`, head, rows));
}

/* Across domains */

function showTransfers() {
  $("transfer-section").hidden = !several;
  if (!several) return;
  const at = (transfer) => transfer.shares[state.share].policies;
  const names = domains.map((domain) => domain.name);
  const find = (profile, text) => evaluation.transfers[names.indexOf(profile) * names.length + names.indexOf(text)];
  const cell = (value) => el("td", { class: "bar", "--width": percent(value) }, percent(value));
  $("matrix").replaceChildren(table(`Fixed profile, ${percent(shares[state.share].share, 0)} of the experts resident`,
    ["Profiled on", ...names.map((name) => `used on ${name}`)], [
      ...names.map((a) => [a, ...names.map((b) => cell(at(find(a, b)).profile.pairs))]),
      ["oracle", ...names.map((b) => cell(at(find(b, b)).oracle.pairs))],
    ]));
  const won = (tokens) => tokens === null ? "never" : count(tokens);
  const cache = (t, name) => {
    const { half, most } = t.regained[state.share][name];
    return el("td", {}, percent(at(t)[name].pairs), el("div", { class: "note" }, `${won(half)} / ${won(most)}`));
  };
  const rows = evaluation.transfers.filter((t) => t.profile !== t.text).map((t) => [`${t.profile} on ${t.text}`,
    percent(at(t).profile.pairs), ...SEEDED.map((name) => cache(t, name)), percent(at(t).oracle.pairs)]);
  const head = SEEDED.map((name) => el("th", { scope: "col" }, swatch(name), SHORT[name]));
  $("regained").replaceChildren(table(`What a cache that starts as the foreign profile hits; below it, after how many tokens `
    + `its hits, ${evaluation.window} tokens at a time, were half and 90% of the way from the fixed profile's to the oracle's`,
  ["Profile on text", "fixed profile", ...head, "oracle"], rows));
}

function showShares() {
  const scored = scoredOf[state.text];
  const head = ["Resident", "Slots", ...Object.keys(policies).map((name) => SHORT[name])];
  const rows = (show) => scored.shares.map((at) =>
    [percent(at.share, 0), count(at.slots), ...Object.keys(policies).map((name) => show(at.policies[name]))]);
  $("shares").replaceChildren(
    table(`Routed pairs hit, ${texts[state.text].name}`, head, rows((score) => percent(score.pairs))),
    table(`Bytes over PCIe a token, ${texts[state.text].name}`, head, rows((score) => bytes(score.bytes_per_token))));
}

/* Once */

function showSubject() {
  $("model").textContent = subject.model;
  document.title = `Expert heat of ${subject.model}`;
  $("corpus").replaceChildren(table("Texts", ["File", "Bytes", el("th", { scope: "col", class: "hash" }, "SHA-256")],
    subject.corpus.map((file) => [file.name, count(file.bytes), el("td", { class: "hash" }, file.sha256)])));
  const rows = { "Pack's root hash": subject.pack_root, "Made by": subject.tool,
    "All experts": `${count(evaluation.experts)} in ${plural(layers.length, "layer")}, ${bytes(evaluation.total_bytes)}; a slot is ${bytes(evaluation.slot_bytes)}`,
    "LFU": `a use counts half after ${evaluation.half_life} tokens` };
  for (const [name, value] of Object.entries(rows)) $("subject").append(el("dt", {}, name), el("dd", {}, value));
  $("legend").replaceChildren(...Object.entries(policies).map(([name, words]) => el("li", {}, swatch(name), words)));
}

function show() {
  $("share-words").textContent = `${percent(shares[state.share].share, 0)}, ${bytes(shares[state.share].slots * evaluation.slot_bytes)}`;
  for (const part of [showSummary, showPolicies, showCurves, showMap, showLayers, showTransfers, showShares]) part();
}

texts.forEach((text, i) => $("text").append(el("option", { value: i }, text.name)));
$("text").addEventListener("change", (event) => { state.text = Number(event.target.value); show(); });
$("share").max = shares.length - 1;
$("share").value = state.share;
$("share").addEventListener("input", (event) => { state.share = Number(event.target.value); show(); });
for (const id of ["sorted", "resident", "difference"]) $(id).addEventListener("change", showMap);
addEventListener("resize", showCurves);
listenToMap();
showSubject();
show();
