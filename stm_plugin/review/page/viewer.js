// The picture: what each view shows, at which zoom, and where a point of the screen lies in the plate.

const CHECKER = 12;
const CUTOUT_BACKS = ["checker", "#00b140", "#000000", "#ffffff"];
const SMOOTH_BELOW = 1.5; // above this zoom real pixels are shown
const TINT = 0.5;

export class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.work = document.createElement("canvas");
    this.view = "overlay";
    this.back = 0;
    this.wipe = 0.5;
    this.flickerOld = false;
    this.fitted = true;
    this.scale = 1;
    this.offset = [0, 0];
    this.size = [1, 1]; // of the plate, in its pixels
    this.aspect = 1;
  }

  setPlate(width, height, aspect) {
    this.size = [width, height];
    this.aspect = aspect || 1;
    if (this.fitted) this.fit();
  }

  get box() { return [this.canvas.clientWidth, this.canvas.clientHeight]; }

  fit() {
    const [width, height] = this.box;
    this.scale = Math.min(width / (this.size[0] * this.aspect), height / this.size[1]) * 0.98 || 1;
    this.centre();
    this.fitted = true;
  }

  centre() {
    const [width, height] = this.box;
    this.offset = [(width - this.size[0] * this.aspect * this.scale) / 2, (height - this.size[1] * this.scale) / 2];
  }

  // Zoom so that the plate's point under (x, y) of the screen stays there.
  zoom(scale, x = this.box[0] / 2, y = this.box[1] / 2) {
    const [px, py] = this.toPlate(x, y);
    this.scale = Math.min(32, Math.max(0.02, scale));
    this.offset = [x - px * this.aspect * this.scale, y - py * this.scale];
    this.fitted = false;
  }

  toPlate(x, y) {
    return [(x - this.offset[0]) / (this.scale * this.aspect), (y - this.offset[1]) / this.scale];
  }

  get close() { return this.scale * (window.devicePixelRatio || 1) > 0.6; }

  // `look`: {plate, layers: [{bitmap, old, colour, confidence, active}], over: function(context), isQuick}
  draw(look) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = this.box;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
      if (this.fitted) this.fit();
    }
    const context = this.context;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#141414";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.quality = look.isQuick ? "low" : "high";
    this.place(context, ratio);
    this[this.view](context, look);
    if (look.over) look.over(context);
  }

  // Draw in the plate's pixels from now on.
  place(context, ratio) {
    context.setTransform(
      ratio * this.scale * this.aspect, 0, 0, ratio * this.scale, ratio * this.offset[0], ratio * this.offset[1]);
    context.imageSmoothingEnabled = this.scale < SMOOTH_BELOW;
    context.imageSmoothingQuality = this.quality;
  }

  picture(context, bitmap) {
    if (bitmap) context.drawImage(bitmap, 0, 0, ...this.size);
    else { context.fillStyle = "#202020"; context.fillRect(0, 0, ...this.size); }
  }

  plate(context, look) { this.picture(context, look.plate); }

  overlay(context, look) {
    this.picture(context, look.plate);
    for (const layer of look.layers) this.tint(context, layer.bitmap, layer.colour);
  }

  matte(context, look) {
    context.fillStyle = "#000";
    context.fillRect(0, 0, ...this.size);
    for (const layer of look.layers) if (layer.active && layer.bitmap) context.drawImage(layer.bitmap, 0, 0, ...this.size);
  }

  cutout(context, look) {
    const back = CUTOUT_BACKS[this.back % CUTOUT_BACKS.length];
    if (back === "checker") this.checker(context);
    else { context.fillStyle = back; context.fillRect(0, 0, ...this.size); }
    for (const layer of look.layers) {
      if (!layer.bitmap || !look.plate) continue;
      this.within(context, layer.bitmap, 1, (work) => work.drawImage(look.plate, 0, 0, ...this.size));
    }
  }

  confidence(context, look) {
    this.picture(context, look.plate);
    context.fillStyle = "rgb(0 0 0 / 65%)";
    context.fillRect(0, 0, ...this.size);
    for (const layer of look.layers) {
      if (layer.confidence) context.drawImage(layer.confidence, 0, 0, ...this.size);
    }
  }

  wipeLine() { return this.wipe * this.size[0]; }

  // `wipe` is the line's place; the view of that name is drawn here.
  compare(context, look) {
    this.picture(context, look.plate);
    const line = this.wipeLine();
    for (const [left, right, name] of [[0, line, "old"], [line, this.size[0], "bitmap"]]) {
      context.save();
      context.beginPath();
      context.rect(left, 0, right - left, this.size[1]);
      context.clip();
      for (const layer of look.layers) this.tint(context, layer[name], layer.colour);
      context.restore();
    }
    context.fillStyle = "#fff";
    context.fillRect(line - 0.5 / this.scale, 0, 1 / this.scale, this.size[1]);
  }

  flicker(context, look) {
    this.picture(context, look.plate);
    for (const layer of look.layers) this.tint(context, this.flickerOld ? layer.old : layer.bitmap, layer.colour);
  }

  tint(context, bitmap, colour) {
    if (!bitmap) return;
    this.within(context, bitmap, TINT, (work) => {
      work.fillStyle = `rgb(${colour.join(" ")})`;
      work.fillRect(0, 0, ...this.size);
    });
  }

  // What `fill` draws, inside a matte; in the screen's pixels, of which there are fewer than the plate's.
  within(context, matte, alpha, fill) {
    this.work.width = this.canvas.width; // empties it, too
    this.work.height = this.canvas.height;
    const work = this.work.getContext("2d");
    this.place(work, window.devicePixelRatio || 1);
    work.drawImage(matte, 0, 0, ...this.size);
    work.globalCompositeOperation = "source-in";
    fill(work);
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalAlpha = alpha;
    context.drawImage(this.work, 0, 0);
    context.restore();
  }

  checker(context) {
    const step = CHECKER / this.scale;
    context.fillStyle = "#5a5a5a";
    context.fillRect(0, 0, ...this.size);
    context.fillStyle = "#777";
    context.save();
    context.beginPath();
    context.rect(0, 0, ...this.size);
    context.clip();
    for (let y = 0, row = 0; y < this.size[1]; y += step, row += 1) {
      for (let x = row % 2 ? step : 0; x < this.size[0]; x += 2 * step) context.fillRect(x, y, step, step);
    }
    context.restore();
  }
}
