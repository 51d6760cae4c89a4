// The timeline: states, keys, confidence, the advised frame, the playhead.

const COLOURS = { key: "#ffd000", done: "#3f7a4d", stale: "#b5652a", missing: "#444", unreached: "#6a3340" };

export class Timeline {
  constructor(canvas, onFrame) {
    this.canvas = canvas;
    this.frames = [];
    const go = (event) => {
      if (!this.frames.length) return;
      const box = canvas.getBoundingClientRect();
      const place = (event.clientX - box.left) / box.width * this.frames.length;
      onFrame(this.frames[Math.min(this.frames.length - 1, Math.max(0, Math.floor(place)))]);
    };
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); go(event); });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons & 1) go(event); });
  }

  draw(state, frame) {
    this.frames = state.frames;
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const step = width / this.frames.length;
    const middle = (index) => (index + 0.5) * step;
    const band = { top: 16, height: 12 };
    this.frames.forEach((one, index) => {
      context.fillStyle = COLOURS[state.states[one]] ?? "#444";
      context.fillRect(index * step, band.top, Math.max(step - (step > 4 ? 1 : 0), 0.5), band.height);
    });
    context.strokeStyle = "#9fc6ff";
    context.beginPath();
    let drawn = false;
    this.frames.forEach((one, index) => {
      const value = state.confidence[one];
      const current = state.states[one] === "done" || state.states[one] === "key";
      if (value === undefined || !current) { drawn = false; return; }
      const y = height - 3 - value * (height - band.top - band.height - 8);
      if (drawn) context.lineTo(middle(index), y); else context.moveTo(middle(index), y);
      drawn = true;
    });
    context.stroke();
    context.font = "10px system-ui";
    for (const key of state.keys) {
      const index = this.frames.indexOf(key.frame);
      if (index < 0) continue;
      const [x, y] = [middle(index), band.top + band.height / 2];
      context.fillStyle = "#ffd000";
      context.strokeStyle = "#1b1b1b";
      context.beginPath();
      context.moveTo(x, y - 7); context.lineTo(x + 6, y); context.lineTo(x, y + 7); context.lineTo(x - 6, y);
      context.closePath();
      context.fill();
      context.stroke();
    }
    if (state.next) {
      const x = middle(this.frames.indexOf(state.next.frame));
      context.fillStyle = "#9fc6ff";
      context.beginPath();
      context.moveTo(x, band.top - 1); context.lineTo(x - 5, band.top - 8); context.lineTo(x + 5, band.top - 8);
      context.fill();
    }
    const at = middle(this.frames.indexOf(frame));
    context.fillStyle = "#fff";
    context.fillRect(at - 1, 12, 2, height - 12);
    context.textAlign = at < 30 ? "left" : at > width - 30 ? "right" : "center";
    context.fillText(String(frame), at, 10);
    context.fillStyle = "#a9a9a9";
    if (at > 70) { context.textAlign = "left"; context.fillText(String(this.frames[0]), 1, 10); }
    if (at < width - 70) { context.textAlign = "right"; context.fillText(String(this.frames.at(-1)), width - 1, 10); }
  }
}
