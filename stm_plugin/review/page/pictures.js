// Pictures by frame: small ones of every frame, made in advance; the full-size one of the current frame.

import * as api from "./api.js";

const AT_ONCE = 4;

// The matte to compare a new one with: the last that was computed.
const previous = (before) => (before ? (before.address === null ? before.old : before.bitmap) : null);

export class Pictures {
  // onArrival: called whenever a picture has come.
  constructor(onArrival) {
    this.onArrival = onArrival;
    this.plates = new Map(); // frame -> bitmap
    this.mattes = new Map(); // "frame/object" -> {bitmap, address, old}
    this.confidences = new Map(); // "frame/object" -> bitmap
    this.full = { plate: null, mattes: new Map(), asked: new Set(), frame: null };
    this.failed = new Map(); // "plate 1001" -> message
    this.queue = [];
    this.running = 0;
  }

  // Ask for the small pictures of all frames, the nearest to `frame` first.
  ahead(frames, frame, objects, shown) {
    const wanted = [...frames].sort((a, b) => Math.abs(a - frame) - Math.abs(b - frame));
    this.queue = [];
    for (const one of wanted) {
      if (!this.plates.has(one) && !this.failed.has(`plate ${one}`)) this.queue.push(() => this.loadPlate(one));
      if (shown.has(one)) {
        for (const object of objects) {
          if (!this.mattes.has(`${one}/${object}`)) this.queue.push(() => this.loadMatte(one, object));
        }
      }
    }
    this.work();
  }

  work() {
    while (this.running < AT_ONCE && this.queue.length) {
      const next = this.queue.shift();
      this.running += 1;
      next().finally(() => { this.running -= 1; this.work(); });
    }
  }

  async loadPlate(frame) {
    if (this.plates.has(frame)) return;
    try {
      this.plates.set(frame, await api.plate(frame, "proxy"));
      this.failed.delete(`plate ${frame}`);
    } catch (error) {
      this.failed.set(`plate ${frame}`, error.message);
    }
    this.onArrival();
  }

  // A new matte keeps the one before it, to be compared with.
  async loadMatte(frame, object) {
    const name = `${frame}/${object}`;
    try {
      const found = await api.matte(frame, object, "proxy");
      const before = this.mattes.get(name);
      if (before && before.address === found.address) return;
      this.mattes.set(name, { ...found, old: previous(before) });
      this.confidences.delete(name);
      if (this.full.frame === frame) {
        this.full.mattes.delete(object);
        this.full.asked.delete(object);
      }
    } catch { /* stale or missing: the timeline says so */ }
    this.onArrival();
  }

  // A mask that became a key is shown at once as the frame's matte, also where others of the frame are stale.
  keep(frame, object, bitmap) {
    const name = `${frame}/${object}`;
    this.mattes.set(name, { bitmap, address: null, old: previous(this.mattes.get(name)) });
    if (this.full.frame === frame) this.full.mattes.set(object, bitmap);
  }

  // A frame's matte was made: it is loaded when it is shown next.
  refresh(frame, objects) {
    for (const object of objects) this.queue.unshift(() => this.loadMatte(frame, object));
    this.work();
  }

  async loadConfidence(frame, object) {
    const name = `${frame}/${object}`;
    if (this.confidences.has(name)) return;
    this.confidences.set(name, null);
    try { this.confidences.set(name, await api.confidence(frame, object)); } catch { /* not done */ }
    this.onArrival();
  }

  // The full-size pictures of one frame, asked for once; a matte again after a new one was made.
  async loadFull(frame, objects) {
    if (this.full.frame !== frame) this.full = { plate: null, mattes: new Map(), asked: new Set(), frame };
    const full = this.full;
    const fetched = async (what, get) => {
      if (full.asked.has(what)) return;
      full.asked.add(what);
      try { await get(); } catch { return; /* the small one stays */ }
      this.onArrival();
    };
    await fetched("", async () => { full.plate = await api.plate(frame, "full"); });
    for (const object of objects) {
      await fetched(object, async () => { full.mattes.set(object, (await api.matte(frame, object, "full")).bitmap); });
    }
  }

  plate(frame, close) {
    return (close && this.full.frame === frame && this.full.plate) || this.plates.get(frame) || null;
  }

  matte(frame, object, close, old = false) {
    const small = this.mattes.get(`${frame}/${object}`);
    if (old) return small ? small.old ?? small.bitmap : null;
    return (close && this.full.frame === frame && this.full.mattes.get(object)) || (small ? small.bitmap : null);
  }
}
