// Probabilities over time as lines on a canvas.
const SPAN_S = 60;
const COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999", "#ee7733"]; // Tol's, bright

export class Chart {
  #canvas;
  #legend;
  #points = []; // [time, probabilities]
  #labels = [];

  constructor(canvas, legend) {
    this.#canvas = canvas;
    this.#legend = legend;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  add(time, probabilities) {
    const labels = Object.keys(probabilities);
    if (labels.length && labels.join() !== this.#labels.join()) this.#name(labels);
    this.#points.push([time, probabilities]);
    while (this.#points[0][0] < time - SPAN_S) this.#points.shift();
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const scale = devicePixelRatio;
    this.#canvas.width = width * scale;
    this.#canvas.height = height * scale;
    const pen = this.#canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.lineWidth = 1;
    pen.strokeStyle = pen.fillStyle = getComputedStyle(this.#canvas).getPropertyValue("color");
    pen.font = "12px system-ui, sans-serif";
    const y = (share) => height - 18 - share * (height - 26);
    for (const share of [0, 0.5, 1]) {
      pen.globalAlpha = 0.25;
      line(pen, [[30, y(share)], [width, y(share)]]);
      pen.globalAlpha = 0.8;
      pen.fillText(`${100 * share} %`, 0, y(share) + 4);
    }
    if (!this.#points.length) return;
    const last = this.#points.at(-1)[0];
    const first = Math.max(this.#points[0][0], last - SPAN_S);
    const x = (time) => 34 + ((time - first) / Math.max(1, last - first)) * (width - 38);
    pen.fillText(`${first.toFixed(0)} s`, 34, height - 2);
    pen.textAlign = "right";
    pen.fillText(`${last.toFixed(0)} s`, width, height - 2);
    pen.globalAlpha = 1;
    pen.lineWidth = 2;
    this.#labels.forEach((label, index) => {
      pen.strokeStyle = COLOURS[index % COLOURS.length];
      pen.setLineDash(index < COLOURS.length ? [] : [5, 3]);
      const known = this.#points.filter(([, probabilities]) => label in probabilities);
      line(pen, known.map(([time, probabilities]) => [x(time), y(probabilities[label])]));
    });
  }

  #name(labels) {
    this.#labels = labels;
    this.#legend.replaceChildren(
      ...labels.map((label, index) => {
        const entry = document.createElement("li");
        const mark = document.createElement("span");
        mark.style.background = COLOURS[index % COLOURS.length];
        entry.append(mark, label);
        return entry;
      }),
    );
  }
}

function line(pen, points) {
  pen.beginPath();
  for (const [x, y] of points) pen.lineTo(x, y);
  pen.stroke();
}
