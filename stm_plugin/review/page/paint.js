// The mask that is being painted on one frame for one object: white, its alpha is the mask, in plate pixels.

const UNDO_BYTES = 256 << 20; // what the steps that can be undone may take
const FAR = 100000; // a shape drawn this far outside shows its shadow only: that is how edges become soft everywhere

function surface(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

export class Mask {
  constructor(frame, object, width, height) {
    this.frame = frame;
    this.object = object;
    this.canvas = surface(width, height);
    this.context = this.canvas.getContext("2d", { willReadFrequently: false });
    this.before = surface(width, height);
    this.undone = [];
    this.done = [];
    this.changed = false;
  }

  // Begin with a bitmap (any size) or with nothing.
  fill(bitmap) {
    this.remember(() => {
      this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
      if (bitmap) this.context.drawImage(bitmap, 0, 0, this.canvas.width, this.canvas.height);
    });
  }

  // One change, which can be undone.
  remember(change) {
    this.start();
    change();
    this.finish();
  }

  start() {
    const context = this.before.getContext("2d");
    context.globalCompositeOperation = "copy";
    context.drawImage(this.canvas, 0, 0);
    this.touched = null;
  }

  finish() {
    this.done.push(this.copyOf(this.before));
    const most = Math.max(3, Math.floor(UNDO_BYTES / (4 * this.canvas.width * this.canvas.height)));
    if (this.done.length > most) this.done.shift();
    this.undone = [];
    this.changed = true;
  }

  copyOf(canvas) {
    const copy = surface(canvas.width, canvas.height);
    copy.getContext("2d").drawImage(canvas, 0, 0);
    return copy;
  }

  // Show a shape over what was there at `start`; called again and again while a stroke grows. Only the
  // rectangle round it is drawn: a 4K mask has many pixels.
  preview(shape, { erase, soft }) {
    const context = this.context;
    const far = shape.reach + 3 * soft + 2;
    const box = joined(this.touched, [
      Math.max(0, Math.floor(least(shape.points, 0) - far)), Math.max(0, Math.floor(least(shape.points, 1) - far)),
      Math.min(this.canvas.width, Math.ceil(most(shape.points, 0) + far)),
      Math.min(this.canvas.height, Math.ceil(most(shape.points, 1) + far)),
    ]);
    this.touched = box;
    const place = [box[0], box[1], box[2] - box[0], box[3] - box[1]];
    if (place[2] <= 0 || place[3] <= 0) return; // outside of the picture
    context.save();
    context.beginPath();
    context.rect(...place);
    context.clip();
    context.globalCompositeOperation = "copy";
    context.drawImage(this.before, ...place, ...place);
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = "#fff";
    if (soft > 0) {
      context.shadowColor = "#fff";
      context.shadowBlur = 2 * soft;
      context.shadowOffsetX = FAR;
      context.translate(-FAR, 0);
    }
    shape.draw(context);
    context.restore();
  }

  undo() { this.swap(this.done, this.undone); }
  redo() { this.swap(this.undone, this.done); }

  swap(from, to) {
    const canvas = from.pop();
    if (!canvas) return;
    to.push(this.copyOf(this.canvas));
    this.context.globalCompositeOperation = "copy";
    this.context.drawImage(canvas, 0, 0);
    this.context.globalCompositeOperation = "source-over";
    this.changed = true;
  }

  // Whether no pixel is painted.
  get empty() {
    const { data } = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
    for (let place = 3; place < data.length; place += 4) if (data[place]) return false;
    return true;
  }

  blob() {
    return new Promise((resolve, reject) => this.canvas.toBlob(
      (blob) => (blob ? resolve(blob) : reject(new Error("The browser could not encode the mask."))), "image/png"));
  }
}

const least = (points, axis) => points.reduce((value, point) => Math.min(value, point[axis]), Infinity);
const most = (points, axis) => points.reduce((value, point) => Math.max(value, point[axis]), -Infinity);
const joined = (a, b) => (a ? [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])] : b);

// Shapes: their points, how far they reach beyond them, and how they are drawn.
export const stroke = (points, width) => ({
  points,
  reach: width / 2,
  draw(context) {
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = width;
    trace(context, points);
    if (points.length === 1) context.lineTo(points[0][0] + 0.01, points[0][1]);
    context.stroke();
  },
});

export const area = (points) => ({
  points,
  reach: 0,
  draw(context) {
    trace(context, points);
    context.closePath();
    context.fill();
  },
});

export function trace(context, points) {
  context.beginPath();
  points.forEach((point, index) => (index ? context.lineTo(...point) : context.moveTo(...point)));
}
