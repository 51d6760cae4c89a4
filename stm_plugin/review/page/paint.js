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

  // Show `shape(context)` over what was there at `start`; called again and again while a stroke grows.
  preview(shape, { erase, soft }) {
    const context = this.context;
    context.globalCompositeOperation = "copy";
    context.drawImage(this.before, 0, 0);
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    context.save();
    context.fillStyle = context.strokeStyle = "#fff";
    if (soft > 0) {
      context.shadowColor = "#fff";
      context.shadowBlur = 2 * soft;
      context.shadowOffsetX = FAR;
      context.translate(-FAR, 0);
    }
    shape(context);
    context.restore();
    context.globalCompositeOperation = "source-over";
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

export const stroke = (points, width) => (context) => {
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = width;
  context.beginPath();
  context.moveTo(...points[0]);
  for (const point of points.slice(1)) context.lineTo(...point);
  if (points.length === 1) context.lineTo(points[0][0] + 0.01, points[0][1]);
  context.stroke();
};

export const area = (points) => (context) => {
  context.beginPath();
  points.forEach((point, index) => (index ? context.lineTo(...point) : context.moveTo(...point)));
  context.closePath();
  context.fill();
};
