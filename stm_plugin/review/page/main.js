// The page: its state, its keys and buttons, and what they do.

import * as api from "./api.js";
import { Mask, area, stroke, trace } from "./paint.js";
import { Pictures } from "./pictures.js";
import { Timeline } from "./timeline.js";
import { Viewer } from "./viewer.js";

const by = (id) => document.getElementById(id);
const SHOWN = new Set(["key", "done"]);
const PAINTING = new Set(["brush", "eraser", "lasso", "polygon"]);
const HINTING = new Set(["box", "inside", "outside"]);
const LOCKABLE = { edges: "finish.edges", "edge-width": "finish.width", foreground: "foreground", ids: "cryptomatte" };
const TITLES = Object.fromEntries(Object.keys(LOCKABLE).map((id) => [id, (by(id).closest("label") ?? by(id)).title]));
const FLICKER_MS = 450;
const NOTICE_MS = 30000;

let state = null;
let frame = null;
let object = null;
let tool = "brush";
let speed = 0; // frames a second, negative backward
let mask = null; // what is painted and not yet a key
let hints = null; // {frame, box, inside, outside}
let drag = null;
let pointer = null;
let polygon = [];
let drawn = false;
let heldBy = null; // who held the shot when this was last said
let idsChosen = false; // whether the shot's own choice of Cryptomatte has been taken over
let told = ""; // how the last propagation ended, once it has been said

const viewer = new Viewer(by("view"));
const pictures = new Pictures(() => draw());
const timeline = new Timeline(by("timeline"), (one) => go(one));

// ---- state ----

async function refresh() {
  const before = state;
  try {
    state = await api.state();
  } catch (error) {
    return say(error.message, true);
  }
  if (frame === null) frame = state.keys.length ? state.keys[0].frame : state.frames[0];
  const names = state.objects.map((one) => one.name);
  if (object === null || (!names.includes(object) && !mask)) object = names[0];
  if (!names.includes(object)) state.objects.push({ name: object, colour: [64, 224, 96] });
  viewer.setPlate(state.canvas[2], state.canvas[3], state.pixelAspect);
  ahead();
  if (before && JSON.stringify(before.settings) !== JSON.stringify(state.settings)) reloadMattes();
  show();
  return undefined;
}

// Edges have changed: every matte again, the nearest first. The ones before stay for comparison.
function reloadMattes() {
  const far = [...shownFrames()].sort((a, b) => Math.abs(b - frame) - Math.abs(a - frame));
  for (const one of far) pictures.refresh(one, names());
}

const shownFrames = () => new Set(state.frames.filter((one) => SHOWN.has(state.states[one])));
const names = () => state.objects.map((one) => one.name);
const isKey = () => state.keys.some((one) => one.frame === frame);

// Tell the server where to make pictures ahead: one request at a time, the last frame counts.
let looking = false;
let lookedAt = null;
async function look() {
  if (looking || lookedAt === frame) return;
  looking = true;
  lookedAt = frame;
  try { await api.look(frame); } catch { /* the link says so */ }
  looking = false;
  look();
}

function ahead() {
  look();
  pictures.ahead(state.frames, frame, names(), shownFrames());
}

function say(text, failed = false) {
  by("run").textContent = text;
  by("run").classList.toggle("failed", failed);
}

// What happened beside the work under way; it stays for a while.
let noticed = null;
function notice(text) {
  by("notice").textContent = text;
  clearTimeout(noticed);
  noticed = setTimeout(() => { by("notice").textContent = ""; }, NOTICE_MS);
}

// Run an action of a button; its failure is told.
async function act(action) {
  try {
    await action();
  } catch (error) {
    say(error.message, true);
  }
}

// ---- what is shown ----

function show() {
  if (!state) return;
  by("name").textContent = state.name;
  by("frame").textContent = `${frame}${isKey() ? " (key)" : ""}`;
  const select = by("object");
  if ([...select.options].map((one) => one.value).join("\n") !== names().join("\n")) {
    select.replaceChildren(...names().map((name) => new Option(name, name)));
  }
  select.value = object;
  showLegend();
  const run = state.run;
  by("dirty").textContent = state.networkFrames
    ? `Propagating computes ${state.networkFrames} frames: ${state.dirty.join("; ")}`
    : state.keys.length ? (state.dirty.join("; ") || "Everything is up to date.") : "There is no key yet: paint a mask.";
  by("propagate").disabled = run.running || !state.keys.length || Boolean(state.heldBy);
  by("stop").disabled = !run.running;
  by("progress").classList.toggle("running", run.running);
  by("progress").value = run.total ? run.done / run.total : 0;
  if (run.running) {
    const left = run.seconds_left === null ? "" : `, ${Math.ceil(run.seconds_left)} s left`;
    told = "";
    const who = run.other ? "Another program propagates. " : "";
    say(who + (run.total && run.frame !== null ? `Frame ${run.frame}: ${run.done} of ${run.total} steps${left}` : "Getting ready ..."));
  } else if (run.message && run.message !== told) {
    told = run.message;
    say(run.message, run.failed);
  } else if (state.heldBy) {
    say(`The shot is held by ${state.heldBy}. You can look; changes wait until it is free.`);
  } else if (heldBy) {
    say("The shot is free again.");
  }
  heldBy = run.running ? null : state.heldBy;
  const held = Boolean(state.heldBy);
  const chosen = state.settings;
  by("edges").value = chosen["finish.edges"];
  by("edge-width").value = chosen["finish.width"];
  by("foreground").checked = chosen.foreground;
  const locked = state.locked;
  for (const [id, name] of Object.entries(LOCKABLE)) {
    by(id).disabled = held || run.running || name in locked;
    (by(id).closest("label") ?? by(id)).title = locked[name] ?? TITLES[id];
  }
  by("edge-width").disabled ||= chosen["finish.edges"] !== "learned";
  by("ids").disabled = "cryptomatte" in locked;
  by("locked").textContent = Object.values(locked).join(" ");
  if (!idsChosen) by("ids").checked = state.cryptomatte;
  idsChosen = true;
  by("advice").textContent = [state.next ? `The next key would help most on ${state.next.text}.` : state.noAdvice, ...state.advice]
    .filter(Boolean).join(" ");
  by("go-next").disabled = !state.next;
  const dirtyMask = mask !== null && mask.frame === frame;
  by("set-key").disabled = !dirtyMask || held;
  by("discard").disabled = !dirtyMask && !hints;
  by("undo").disabled = !dirtyMask || !mask.done.length;
  by("redo").disabled = !dirtyMask || !mask.undone.length;
  by("remove-key").disabled = !isKey() || held;
  by("from-matte").disabled = !SHOWN.has(state.states[frame]);
  by("from-hints").disabled = !hints || hints.frame !== frame;
  by("nuke").disabled = !state.exported;
  by("bundle").disabled = !state.keys.length;
  by("play").textContent = speed ? "Stop" : "Play";
  for (const button of document.querySelectorAll("[data-tool]")) button.classList.toggle("on", button.dataset.tool === tool);
  for (const button of document.querySelectorAll("[data-view]")) {
    button.classList.toggle("on", button.dataset.view === (viewer.view === "compare" ? "wipe" : viewer.view));
  }
  timeline.draw(state, frame);
  showLink();
  draw();
}

// The objects in their colours; a click chooses one.
let legend = "";
function showLegend() {
  const now = JSON.stringify([state.objects, object]);
  if (now === legend) return;
  legend = now;
  by("object").style.borderColor = `rgb(${state.objects.find((one) => one.name === object).colour.join(" ")})`;
  by("legend").replaceChildren(...(state.objects.length > 1 ? state.objects : []).map((one) => {
    const [button, colour] = [document.createElement("button"), document.createElement("i")];
    colour.style.background = `rgb(${one.colour.join(" ")})`;
    button.append(colour, one.name);
    button.title = `Paint and show ${one.name}`;
    button.classList.toggle("on", one.name === object);
    button.addEventListener("click", () => { object = one.name; show(); });
    return button;
  }));
}

// Ask for the next repaint; several requests make one.
function draw() {
  if (drawn) return;
  drawn = true;
  requestAnimationFrame(() => { drawn = false; paint(); });
}

function paint() {
  if (!state) return;
  if (drag && drag.grown && drag.mask && drag.kind !== "lasso") {
    drag.mask.preview(stroke(drag.points, drag.width), drag);
    drag.grown = false;
  }
  const close = viewer.close && !speed;
  if (close) pictures.loadFull(frame, SHOWN.has(state.states[frame]) ? names() : []);
  const painted = mask && mask.frame === frame ? mask : null;
  const layers = state.objects.map((one) => {
    const own = painted && painted.object === one.name ? painted.canvas : null;
    if (viewer.view === "confidence") pictures.loadConfidence(frame, one.name);
    return {
      bitmap: own ?? pictures.matte(frame, one.name, close),
      old: pictures.matte(frame, one.name, close, true),
      colour: one.colour,
      confidence: pictures.confidences.get(`${frame}/${one.name}`),
      active: one.name === object,
    };
  });
  viewer.draw({ plate: pictures.plate(frame, close), layers, over: drawOver, isQuick: Boolean(drag) });
  by("zoom").textContent = `${Math.round(viewer.scale * 100)} %`;
  const failed = pictures.failed.get(`plate ${frame}`);
  const why = { stale: "This matte is stale: propagate.", missing: "No matte yet.", unreached: "No pass reaches this frame." };
  const waits = SHOWN.has(state.states[frame]) && layers.some((one) => !one.bitmap) ? "Loading the matte ..." : "";
  by("note").textContent = failed ?? (painted ? "Painted, not a key yet." : why[state.states[frame]] ?? waits);
}

// Strokes under way, hints, the brush.
function drawOver(context) {
  const thin = 1 / viewer.scale;
  drawFormat(context, thin);
  context.lineWidth = 1.5 * thin;
  if (hints && hints.frame === frame) {
    context.strokeStyle = "#ffd000";
    if (hints.box) context.strokeRect(hints.box[0], hints.box[1], hints.box[2] - hints.box[0], hints.box[3] - hints.box[1]);
    for (const [strokes, colour] of [[hints.inside, "#40e060"], [hints.outside, "#ff4040"]]) {
      context.strokeStyle = colour;
      context.lineWidth = Math.max(hints.width, 2 * thin);
      context.lineCap = "round";
      for (const points of strokes) line(context, points);
    }
    context.lineWidth = 1.5 * thin;
  }
  context.strokeStyle = "#fff";
  if (drag && drag.points && tool === "lasso") line(context, drag.points);
  if (polygon.length) line(context, pointer ? [...polygon, pointer] : polygon);
  if (pointer && (tool === "brush" || tool === "eraser")) {
    context.beginPath();
    context.ellipse(pointer[0], pointer[1], Number(by("size").value) / 2, Number(by("size").value) / 2, 0, 0, 2 * Math.PI);
    context.stroke();
  }
}

// The edge of the format, where the plate has overscan.
function drawFormat(context, thin) {
  const [canvas, display] = [state.canvas, state.display];
  if (String(canvas) === String(display)) return;
  context.lineWidth = thin;
  for (const [colour, dashes] of [["#000", []], ["#fff", [6 * thin, 6 * thin]]]) { // seen on bright and dark
    context.strokeStyle = colour;
    context.setLineDash(dashes);
    context.strokeRect(display[0] - canvas[0], display[1] - canvas[1], display[2], display[3]);
  }
  context.setLineDash([]);
}

function line(context, points) {
  trace(context, points);
  context.stroke();
}

// ---- frames ----

function go(one) {
  if (!state || !state.frames.includes(one) || one === frame) return;
  if (mask && mask.frame !== one && mask.changed && !speed) say(`The mask on ${mask.frame} is painted and not a key yet.`);
  frame = one;
  polygon = [];
  if (!speed) ahead();
  show();
}

function step(count) {
  const place = state.frames.indexOf(frame) + count;
  go(state.frames[Math.min(state.frames.length - 1, Math.max(0, place))]);
}

let clock = null;
function play(next) {
  speed = next;
  clearInterval(clock);
  if (speed) {
    clock = setInterval(() => {
      const place = state.frames.indexOf(frame) + Math.sign(speed);
      go(state.frames[(place + state.frames.length) % state.frames.length]);
    }, 1000 / Math.abs(speed));
  }
  show();
}

// ---- painting ----

// What changes the mask waits for what came before it: quick hands paint while a matte is still being loaded.
let painting = Promise.resolve();
function queue(action) {
  painting = painting.then(() => act(action));
  return painting;
}

const mayForget = () => !mask || !mask.changed
  || window.confirm(`The mask of ${mask.object} painted on ${mask.frame} is not a key yet. Forget it?`);

// The mask of a frame and an object; begun with the present matte if there is none.
async function ensureMask(where, from = "matte") {
  if (mask && mask.frame === where.frame && mask.object === where.object) return mask;
  if (!mayForget()) throw new Error("Kept.");
  const made = new Mask(where.frame, where.object, state.canvas[2], state.canvas[3]);
  if (from === "matte" && SHOWN.has(state.states[where.frame])) {
    made.context.drawImage((await api.matte(where.frame, where.object, "full")).bitmap, 0, 0);
  }
  mask = made;
  return made;
}

const here = () => ({ frame, object });
const edge = () => Number(by("soft").value);
const brush = () => Number(by("size").value);

function beginDrag(event, point) {
  if (event.button === 1 || tool === "hand") {
    drag = { kind: "hand", at: [event.clientX, event.clientY] };
    return;
  }
  if (event.button !== 0) return;
  if (viewer.view === "compare" && Math.abs(point[0] - viewer.wipeLine()) * viewer.scale < 12) {
    drag = { kind: "wipe" };
    return;
  }
  if (HINTING.has(tool)) {
    if (!hints || hints.frame !== frame) hints = { frame, box: null, inside: [], outside: [], width: 8 / viewer.scale };
    drag = { kind: tool, points: [point] };
    if (tool !== "box") hints[tool].push(drag.points);
    return;
  }
  if (!PAINTING.has(tool)) return;
  if (tool === "polygon") {
    polygon.push(point);
    return;
  }
  const mine = { kind: tool, points: [point], where: here(), width: brush(), soft: edge(), erase: false };
  const end = new Promise((resolve) => { mine.end = resolve; });
  drag = mine;
  growDrag(mine, event);
  queue(async () => {
    try {
      mine.mask = await ensureMask(mine.where);
      mine.mask.start();
      growDrag(mine);
      await end;
      if (mine.kind !== "lasso") mine.mask.preview(stroke(mine.points, mine.width), mine);
      else if (mine.points.length > 2) mine.mask.preview(area(mine.points), mine);
      mine.mask.finish();
    } finally {
      if (drag === mine) drag = null;
      show();
    }
  });
}

// `event` says whether Alt takes away; without one it is as it was. The stroke is drawn with the next picture.
function growDrag(mine, event) {
  if (event) mine.erase = mine.kind === "eraser" || event.altKey;
  mine.grown = true;
  draw();
}

function moveDrag(event, point) {
  if (drag.kind === "hand") {
    viewer.offset = [viewer.offset[0] + event.clientX - drag.at[0], viewer.offset[1] + event.clientY - drag.at[1]];
    viewer.fitted = false;
    drag.at = [event.clientX, event.clientY];
  } else if (drag.kind === "wipe") {
    viewer.wipe = Math.min(1, Math.max(0, point[0] / viewer.size[0]));
  } else {
    drag.points.push(point);
    if (drag.kind === "box") {
      const [a, b] = [drag.points[0], point];
      hints.box = [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
    } else if (drag.end) {
      growDrag(drag, event);
    }
  }
  draw();
}

function endDrag(event) {
  const mine = drag;
  drag = null;
  if (!mine) return;
  if (mine.end) {
    growDrag(mine, event);
    mine.end();
  }
  show();
}

function closePolygon(erase) {
  const [points, where, soft] = [polygon, here(), edge()];
  polygon = [];
  if (points.length < 3) return draw();
  return queue(async () => {
    const made = await ensureMask(where);
    made.remember(() => made.preview(area(points), { erase, soft }));
    show();
  });
}

const setKey = () => queue(async () => {
  if (!mask || mask.frame !== frame) return;
  const given = mask;
  const empty = given.empty;
  if (empty && !window.confirm(`The mask is empty. Does ${given.object} not appear on ${given.frame}?`)) return;
  say("Setting the key ...");
  await api.setKey(given.frame, given.object, await given.blob(), given.canvas.width, given.canvas.height, empty);
  pictures.keep(given.frame, given.object, await createImageBitmap(given.canvas));
  mask = null;
  hints = null;
  say(`Key ${given.frame} is set.`);
  show();
  await refresh();
  pictures.refresh(given.frame, names());
});

const removeKey = () => act(async () => {
  if (!isKey()) return;
  const removed = frame;
  await api.removeKey(removed);
  say(`Key ${removed} is removed.`);
  await refresh();
});

const discard = () => queue(() => {
  if (mask && mask.frame === frame) mask = null;
  hints = null;
  polygon = [];
  show();
});

const fill = (where, bitmap) => ensureMask(where, "nothing").then((made) => { made.fill(bitmap); show(); });
const fromNothing = () => queue(() => fill(here(), null));
const fromMatte = () => queue(async () => {
  const where = here();
  await fill(where, (await api.matte(where.frame, where.object, "full")).bitmap);
});
const fromHints = () => queue(async () => {
  const where = here();
  say("Searching the object ...");
  await fill(where, await api.startMask(where.frame, hints));
  say("A first mask: correct it, then set the key.");
});

// ---- events ----

function onEvent(event) {
  if (event.kind === "progress" && state) {
    state.run = event.run;
    show();
  } else if (event.kind === "frame" && state) {
    state.states[event.frame] = state.keys.some((one) => one.frame === event.frame) ? "key" : "done";
    pictures.refresh(event.frame, names());
    show();
  } else if (event.kind === "export") {
    say(`Writing ${event.done} of ${event.total} ...`);
  } else if (event.kind === "notice") {
    notice(event.text);
  } else if (event.kind === "state") {
    refresh();
  }
}

function setView(view) {
  if (view === "cutout" && viewer.view === "cutout") viewer.back += 1;
  viewer.view = view === "wipe" ? "compare" : view;
  show();
}

function setTool(next) {
  tool = next;
  polygon = [];
  by("view").style.cursor = tool === "hand" ? "grab" : "crosshair";
  show();
}

function zoom(scale) { viewer.zoom(scale / (window.devicePixelRatio || 1)); draw(); }
function fit() { viewer.fit(); draw(); }
function resize(factor) { by("size").value = Math.round(brush() * factor + (factor > 1 ? 1 : -1)); showSizes(); }
function showSizes() {
  for (const id of ["size", "soft"]) by(`${id}-shown`).textContent = by(id).value;
  draw();
}
const undo = () => queue(() => { if (mask && mask.frame === frame) mask.undo(); show(); });
const redo = () => queue(() => { if (mask && mask.frame === frame) mask.redo(); show(); });
const propagate = () => act(async () => { await api.propagate(); await refresh(); });
const stop = () => act(api.stop);
const goNext = () => { if (state.next) go(state.next.frame); };
const exportMattes = () => act(async () => {
  say("Writing ...");
  const done = await api.exportMattes({
    out: by("out").value.trim(), cryptomatte: by("ids").checked, overwrite: by("overwrite").checked,
  });
  await refresh();
  say(done.text);
});
const writeBundle = () => act(async () => {
  say("Planning the farm's job ...");
  const done = await api.bundle({ out: by("out").value.trim(), overwrite: by("overwrite").checked });
  say(done.text);
});
const copyForNuke = () => act(async () => {
  const text = await api.nukeText();
  try {
    await navigator.clipboard.writeText(text);
    say("Copied. Paste it into Nuke's node graph.");
  } catch {
    window.prompt("Copy this and paste it into Nuke's node graph:", text);
  }
});
function newObject() {
  const name = window.prompt("The object's name:", `object${state.objects.length + 1}`);
  if (!name || !name.trim() || !mayForget()) return;
  object = name.trim();
  if (!names().includes(object)) state.objects.push({ name: object, colour: [64, 224, 96] });
  mask = new Mask(frame, object, state.canvas[2], state.canvas[3]);
  show();
}

// A setting of the shot; where it is refused, the page shows what holds.
const choose = (name, value) => act(async () => {
  try { await api.choose({ [name]: value }); } finally { await refresh(); }
});
for (const id of ["size", "soft"]) by(id).addEventListener("input", showSizes);
showSizes();
by("edges").addEventListener("change", () => { choose("finish.edges", by("edges").value); by("edges").blur(); });
by("edge-width").addEventListener("change", () => choose("finish.width", Number(by("edge-width").value)));
by("foreground").addEventListener("change", () => choose("foreground", by("foreground").checked));

const BUTTONS = {
  "zoom-fit": fit, "zoom-100": () => zoom(1), "zoom-200": () => zoom(2), "zoom-400": () => zoom(4),
  undo, redo, "new-object": newObject, "from-nothing": fromNothing, "from-matte": fromMatte, "from-hints": fromHints,
  discard, "set-key": setKey, "remove-key": removeKey, propagate, stop, "go-next": goNext, export: exportMattes,
  bundle: writeBundle, nuke: copyForNuke, first: () => go(state.frames[0]), previous: () => step(-1), following: () => step(1),
  last: () => go(state.frames.at(-1)), play: () => play(speed ? 0 : state.fps),
};
for (const [id, action] of Object.entries(BUTTONS)) by(id).addEventListener("click", () => state && action());
// After a click the keys belong to the picture again: Space plays, arrows step.
document.addEventListener("click", (event) => { if (event.detail && event.target.matches("button, input[type=range]")) event.target.blur(); });
for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => setView(button.dataset.view));
for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => setTool(button.dataset.tool));
by("object").addEventListener("change", () => { object = by("object").value; by("object").blur(); show(); });

const KEYS = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), " ": () => play(speed ? 0 : state.fps),
  j: () => play(speed < 0 ? speed * 2 : -state.fps), k: () => play(0), l: () => play(speed > 0 ? speed * 2 : state.fps),
  a: () => setView("matte"), o: () => setView("overlay"), c: () => setView("cutout"), p: () => setView("plate"),
  d: () => setView("confidence"), w: () => setView("wipe"), f: () => setView("flicker"),
  b: () => setTool("brush"), e: () => setTool("eraser"), g: () => setTool("lasso"), v: () => setTool("polygon"),
  h: () => setTool("hand"), x: () => setTool("box"), n: () => setTool("inside"), m: () => setTool("outside"),
  "[": () => resize(0.85), "]": () => resize(1.18), 0: fit, Home: fit, 1: () => zoom(1), 2: () => zoom(2), 4: () => zoom(4),
  Enter: () => (polygon.length ? closePolygon(false) : setKey()), Delete: removeKey, Escape: discard,
  r: propagate, s: stop, q: goNext,
};
window.addEventListener("keydown", (event) => {
  if (!state || event.target.matches("input[type=text], select")) return;
  if (event.target.matches("button") && (event.key === " " || event.key === "Enter")) return;
  const command = event.ctrlKey || event.metaKey;
  let action = null;
  if (command && event.key.toLowerCase() === "z") action = event.shiftKey ? redo : undo;
  else if (command && event.key.toLowerCase() === "y") action = redo;
  else if (command && event.key === "ArrowLeft") action = BUTTONS.first;
  else if (command && event.key === "ArrowRight") action = BUTTONS.last;
  else if (!command) action = KEYS[event.key] ?? KEYS[event.key.toLowerCase()] ?? null;
  if (!action) return;
  event.preventDefault();
  action();
});

const stage = by("view");
const at = (event) => {
  const box = stage.getBoundingClientRect();
  return viewer.toPlate(event.clientX - box.left, event.clientY - box.top);
};
stage.addEventListener("pointerdown", (event) => {
  if (!state) return;
  stage.setPointerCapture(event.pointerId);
  play(0);
  beginDrag(event, at(event));
});
stage.addEventListener("pointermove", (event) => {
  pointer = at(event);
  if (drag && !event.buttons) endDrag(event); // it was let go while a question was asked
  if (drag) moveDrag(event, pointer);
  else draw();
});
stage.addEventListener("pointerup", endDrag);
stage.addEventListener("pointercancel", endDrag);
stage.addEventListener("pointerleave", () => { pointer = null; draw(); });
stage.addEventListener("dblclick", (event) => { if (tool === "polygon") closePolygon(event.altKey); });
stage.addEventListener("contextmenu", (event) => event.preventDefault());
stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = stage.getBoundingClientRect();
  viewer.zoom(viewer.scale * 1.0015 ** -event.deltaY, event.clientX - box.left, event.clientY - box.top);
  draw();
}, { passive: false });
window.addEventListener("resize", () => { if (viewer.fitted) viewer.fit(); show(); });
window.addEventListener("beforeunload", (event) => { if (mask && mask.changed) event.preventDefault(); });
setInterval(() => {
  if (viewer.view !== "flicker") return;
  viewer.flickerOld = !viewer.flickerOld;
  draw();
}, FLICKER_MS);

let linked = false;
function showLink() {
  if (linked && !state) return; // nothing can be done yet: "connecting" stands there
  const engine = state ? state.engine : "starting";
  const words = { ready: "connected", starting: "the engine is starting" };
  by("link").textContent = linked ? words[engine] ?? engine : "not connected: trying again";
  by("link").classList.toggle("off", !linked || !(engine in words));
}
api.listen(onEvent, (there) => {
  linked = there;
  showLink();
  if (there) refresh();
});
refresh();
