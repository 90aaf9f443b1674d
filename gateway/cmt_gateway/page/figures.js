// What a gateway's /metrics mean over time: rates and quantiles, out of readings that are a few seconds apart.

const SERIES = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const BEGUN = "cmt_gateway_dropped_frames_created"; // differs between replicas, and after a restart

/** Prometheus' text as name -> [{ labels, value }]. */
export function parsed(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const [, name, inner = "", value] = line.match(SERIES) ?? [];
    if (!name) continue;
    const labels = Object.fromEntries([...inner.matchAll(LABEL)].map(([, key, said]) => [key, said]));
    if (!found.has(name)) found.set(name, []);
    found.get(name).push({ labels, value: Number(value) });
  }
  return found;
}

/** As Prometheus' histogram_quantile: [[upper bound, how many up to it]], rising, the last bound Infinity -> a value or null. */
export function quantile(share, buckets) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!(total > 0)) return null;
  const rank = share * total;
  const index = buckets.findIndex(([, count]) => count >= rank);
  const [below, before] = index ? buckets[index - 1] : [0, 0];
  const [bound, count] = buckets[index];
  return bound === Infinity ? below : below + ((bound - below) * (rank - before)) / (count - before);
}

/** The readings of the last windowS seconds, of one process. */
export class Readings {
  #kept = []; // [{ time, series }], oldest first

  constructor(windowS) {
    this.windowS = windowS;
  }

  /** Whether it goes on from the reading before: not the first one, and not of another process. */
  add(text, time) {
    const series = parsed(text);
    const begun = (reading) => reading.series.get(BEGUN)?.[0].value;
    const goesOn = this.#kept.length > 0 && begun(this.#kept[0]) === begun({ series });
    if (!goesOn) this.#kept = [];
    this.#kept.push({ time, series });
    while (this.#kept.length > 2 && this.#kept[1].time <= time - this.windowS) this.#kept.shift();
    return goesOn;
  }

  gauge(name) {
    return (this.#kept.at(-1).series.get(name) ?? []).reduce((sum, { value }) => sum + value, 0);
  }

  /** Increase a second of a counter, by the values of a label, of the series that are wanted; none before the second reading. */
  rates(name, label, wanted = () => true) {
    const [first, last] = [this.#kept[0], this.#kept.at(-1)];
    const increases = new Map();
    for (const [{ series }, sign] of first === last ? [] : [[last, 1], [first, -1]]) {
      for (const { labels, value } of series.get(name) ?? []) {
        const key = labels[label] ?? "";
        if (wanted(labels, value)) increases.set(key, (increases.get(key) ?? 0) + sign * value);
      }
    }
    return new Map([...increases].map(([key, increase]) => [key, increase / (last.time - first.time)]));
  }

  rate(name, wanted) {
    return this.rates(name, "", wanted).get("") ?? 0;
  }

  /** Of a histogram; null where nothing was observed. */
  quantile(share, name, wanted) {
    const rates = this.rates(`${name}_bucket`, "le", wanted);
    const buckets = [...rates].map(([bound, rate]) => [bound === "+Inf" ? Infinity : Number(bound), rate]);
    return quantile(share, buckets.sort(([a], [b]) => a - b));
  }
}
