// The JavaScript client of live sessions, without dependencies: for the page beside it, and for yours.
//
//   import { LiveSession } from "./cmt-live.js";
//
//   const session = new LiveSession({ url: "wss://emotion.example/v1/live", key: "cmt_…", policy: "customer_service" });
//   session.addEventListener("turn.result", ({ detail }) => console.log(detail.answer.label, detail.decision));
//   await session.open();
//   session.sendText("I have waited for an hour!", session.now());
//
// Every message of the server is an event of its `type`, with the message as `detail`. The session's state comes with
// each answer and is kept here: when the connection breaks, the session goes on from it, on whatever replica answers.

const PROTOCOL = "cmt.live.v1";
const KINDS = { image: 1, pcm: 2, opus: 3 };
const HEAD_BYTES = 5;
const MOST_BUFFERED = 128 * 1024; // bytes that wait to be sent, beyond which pictures are left out; sound never is
const PAUSES_MS = [200, 500, 1000, 2000, 5000]; // before another try

export class LiveSession extends EventTarget {
  #options;
  #socket = null;
  #closing = false;
  #tries = 0;
  #again = null; // the timer of another try
  #began = performance.now();

  /** state: of a session that goes on; the page's own server by default. */
  constructor({ url = defaultUrl(), key = "", policy = null, state = null } = {}) {
    super();
    this.#options = { url, key, policy };
    this.state = state;
    this.skipped = 0; // pictures that weren't sent
  }

  /** Resolves with the server's `session.created`; rejects when it can't be had. */
  open() {
    const { url, key, policy } = this.#options;
    const protocols = key ? [PROTOCOL, `cmt.key.${key}`] : [PROTOCOL];
    const socket = new WebSocket(url, protocols);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    return new Promise((resolve, reject) => {
      let created = null;
      socket.onopen = () => socket.send(JSON.stringify({ type: "session.begin", policy, state: this.state }));
      socket.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        if (message.type === "session.created" && !created) {
          created = message;
          this.#tries = 0;
          this.#began = performance.now() - 1000 * message.clock_s;
          resolve(message);
        }
        if (message.state) this.state = message.state;
        if (message.type === "error" && !created) reject(new Error(message.problem.detail));
        this.dispatchEvent(new CustomEvent(message.type, { detail: message }));
      };
      socket.onclose = ({ code, reason }) => {
        if (!created) reject(new Error(reason || `the connection was closed (${code}): wrong key, or too many sessions?`));
        else this.#closed(code, reason);
      };
    });
  }

  /** Milliseconds of the session's media time, which goes on over a reconnection. */
  now() {
    return performance.now() - this.#began;
  }

  /** Whether it was sent: not where the network is slower than the camera. */
  sendImage(bytes, timeMs) {
    if (!this.connected || this.#socket.bufferedAmount > MOST_BUFFERED) {
      this.skipped += 1;
      return false;
    }
    this.#media("image", bytes, timeMs);
    return true;
  }

  /** samples: Int16Array at 16 kHz, one channel. */
  sendPcm(samples, timeMs) {
    if (this.connected) this.#media("pcm", new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength), timeMs);
  }

  /** One packet, as WebCodecs' AudioEncoder gives them. */
  sendOpus(packet, timeMs) {
    if (this.connected) this.#media("opus", packet, timeMs);
  }

  /** The words of the turn that is being spoken; or, when nobody speaks and they are final, a turn of their own. */
  sendText(text, timeMs, final = true) {
    this.#json({ type: "text", text, time_ms: Math.max(0, Math.round(timeMs)), final });
  }

  endTurn() {
    this.#json({ type: "turn.end" });
  }

  /** What is being answered still is; then the server says `session.ended`, and `closed` comes: at once if not connected. */
  close() {
    this.#closing = true;
    if (this.connected) return this.#json({ type: "session.end" });
    this.#socket?.close(); // where it was connecting
    if (this.#again === null) return;
    clearTimeout(this.#again);
    this.#again = null;
    this.#closed(1000, "");
  }

  get closing() {
    return this.#closing;
  }

  get connected() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  #json(message) {
    if (this.connected) this.#socket.send(JSON.stringify(message));
  }

  #media(kind, bytes, timeMs) {
    const message = new Uint8Array(HEAD_BYTES + bytes.byteLength);
    const head = new DataView(message.buffer);
    head.setUint8(0, KINDS[kind]);
    head.setUint32(1, Math.max(0, Math.round(timeMs)));
    message.set(bytes, HEAD_BYTES);
    this.#socket.send(message);
  }

  #closed(code, reason) {
    if (this.#closing || this.#tries >= PAUSES_MS.length) {
      this.dispatchEvent(new CustomEvent("closed", { detail: { code, reason } }));
      return;
    }
    const pause = PAUSES_MS[this.#tries++];
    this.dispatchEvent(new CustomEvent("reconnecting", { detail: { code, reason, pause } }));
    this.#again = setTimeout(() => {
      this.#again = null;
      this.open().catch(() => this.#closed(code, reason));
    }, pause);
  }
}

function defaultUrl() {
  const url = new URL("v1/live", document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  return url.href;
}
