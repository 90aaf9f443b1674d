// Values over time as lines on a canvas, with a legend.
const COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999", "#ee7733"]; // Tol's, bright
const FOOT = 18; // pixels below the plot
const HEAD = 8;

/** What a chart of probabilities over a session's time has. */
const PROBABILITIES = {
  spanS: 60,
  most: 1, // top of the axis; null: what the values need
  mark: null, // a value that has a line of its own
  told: false, // whether the legend tells the last values
  format: (value) => `${Math.round(100 * value)} %`,
  when: (time) => `${time.toFixed(0)} s`,
};

export class Chart {
  #canvas;
  #legend;
  #options;
  #points = []; // [time, values by label; null where there is none]
  #labels = [];

  constructor(canvas, legend, options = {}) {
    this.#canvas = canvas;
    this.#legend = legend;
    this.#options = { ...PROBABILITIES, ...options };
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  add(time, values) {
    const labels = Object.keys(values);
    if (labels.length && labels.join() !== this.#labels.join()) this.#name(labels);
    this.#points.push([time, values]);
    while (this.#points[0][0] < time - this.#options.spanS) this.#points.shift();
    if (this.#options.told) this.#tell(values);
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const { spanS, mark, format, when } = this.#options;
    const scale = devicePixelRatio;
    this.#canvas.width = width * scale;
    this.#canvas.height = height * scale;
    const pen = this.#canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.lineWidth = 1;
    pen.strokeStyle = pen.fillStyle = getComputedStyle(this.#canvas).getPropertyValue("color");
    pen.font = "12px system-ui, sans-serif";
    const most = this.#most();
    const ticks = [0, most / 2, most];
    const left = 4 + Math.max(...ticks.map((value) => pen.measureText(format(value)).width));
    const y = (value) => height - FOOT - (value / most) * (height - FOOT - HEAD);
    for (const value of ticks) {
      pen.globalAlpha = 0.25;
      line(pen, [[left, y(value)], [width, y(value)]]);
      pen.globalAlpha = 0.8;
      pen.fillText(format(value), 0, y(value) + 4);
    }
    if (!this.#points.length) return;
    const last = this.#points.at(-1)[0];
    const first = Math.max(this.#points[0][0], last - spanS);
    const x = (time) => left + 4 + ((time - first) / Math.max(1, last - first)) * (width - left - 8);
    pen.fillText(when(first), left + 4, height - 2);
    pen.textAlign = "right";
    pen.fillText(when(last), width, height - 2);
    pen.globalAlpha = 1;
    if (mark !== null) {
      pen.setLineDash([2, 4]);
      line(pen, [[left, y(mark)], [width, y(mark)]]);
    }
    pen.lineWidth = 2;
    this.#labels.forEach((label, index) => {
      pen.strokeStyle = COLOURS[index % COLOURS.length];
      pen.setLineDash(index < COLOURS.length ? [] : [5, 3]);
      const known = this.#points.filter(([, values]) => label in values);
      line(pen, known.map(([time, values]) => [x(time), values[label] === null ? null : y(values[label])]));
    });
  }

  /** The top of the axis: 1, 2 or 5 times a power of ten where the values decide. */
  #most() {
    const { most, mark } = this.#options;
    if (most !== null) return most;
    const seen = this.#points.flatMap(([, values]) => Object.values(values));
    const largest = Math.max(1e-3, mark ?? 0, ...seen);
    const power = 10 ** Math.floor(Math.log10(largest));
    return [1, 2, 5, 10].find((step) => step * power >= largest) * power;
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

  #tell(values) {
    this.#labels.forEach((label, index) => {
      const value = values[label] ?? null;
      this.#legend.children[index].lastChild.data = `${label}: ${value === null ? "–" : this.#options.format(value)}`;
    });
  }
}

/** Through the points; broken where one has no y. */
function line(pen, points) {
  pen.beginPath();
  let drawing = false;
  for (const [x, y] of points) {
    if (y !== null) drawing ? pen.lineTo(x, y) : pen.moveTo(x, y);
    drawing = y !== null;
  }
  pen.stroke();
}
