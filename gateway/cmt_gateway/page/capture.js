// Where sound and pictures come from: microphone and camera, or a recording. Each gives 16 kHz PCM and JPEGs with the
// session's time; either may be missing.

export const RATE_HZ = 16000;
const PIECE_SAMPLES = 1600; // 0.1 s
const FRAMES_PER_S = 4;
const FRAME_WIDTH = 640;
const JPEG_QUALITY = 0.85;

/** Calls onPcm(Int16Array, timeMs) until `stop`. Rejects where there is no microphone, or it is denied. */
export async function microphone(session, onPcm) {
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 },
  });
  let context = null;
  const stop = () => (release(stream), context?.close());
  try {
    try {
      context = new AudioContext({ sampleRate: RATE_HZ });
      await connected(context, stream, session, onPcm);
    } catch {
      await context?.close(); // a browser that doesn't convert the rate: the worklet does
      context = new AudioContext();
      await connected(context, stream, session, onPcm);
    }
  } catch (error) {
    stop();
    throw error;
  }
  return { stop };
}

function release(stream) {
  for (const track of stream.getTracks()) track.stop();
}

async function connected(context, stream, session, onPcm) {
  await context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
  const node = new AudioWorkletNode(context, "pcm", { processorOptions: { rateHz: RATE_HZ, samples: PIECE_SAMPLES } });
  const clock = new SampleClock(session);
  node.port.onmessage = ({ data }) => onPcm(data, clock.take(data.length));
  context.createMediaStreamSource(stream).connect(node);
  await context.resume();
}

/** The time of each piece by the count of samples, which a busy page doesn't disturb; anew after a real gap. */
class SampleClock {
  #session;
  #nextMs = null;

  constructor(session) {
    this.#session = session;
  }

  take(samples) {
    const lengthMs = (1000 * samples) / RATE_HZ;
    const beganMs = Math.max(0, this.#session.now() - lengthMs);
    if (this.#nextMs === null || Math.abs(beganMs - this.#nextMs) > 1000) this.#nextMs = beganMs;
    const timeMs = this.#nextMs;
    this.#nextMs += lengthMs;
    return timeMs;
  }
}

/** Shows the camera in `video` and calls onJpeg(Uint8Array, timeMs). Rejects where there is no camera. */
export async function camera(session, video, onJpeg) {
  const stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: FRAME_WIDTH }, facingMode: "user" } });
  let stopFrames = () => {};
  const stop = () => (stopFrames(), release(stream), (video.srcObject = null));
  try {
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    stop();
    throw error;
  }
  stopFrames = frames(session, video, onJpeg);
  return { stop };
}

function frames(session, video, onJpeg) {
  const canvas = document.createElement("canvas");
  let busy = false;
  let stopped = false; // a picture may still be being encoded then
  const timer = setInterval(() => {
    if (busy || video.readyState < 2 || video.videoWidth === 0) return;
    busy = true;
    const timeMs = session.now();
    canvas.width = Math.min(FRAME_WIDTH, video.videoWidth);
    canvas.height = Math.round((canvas.width * video.videoHeight) / video.videoWidth);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(
      async (blob) => {
        const bytes = blob && new Uint8Array(await blob.arrayBuffer());
        if (bytes && !stopped) onJpeg(bytes, timeMs);
        busy = false;
      },
      "image/jpeg",
      JPEG_QUALITY,
    );
  }, 1000 / FRAMES_PER_S);
  return () => ((stopped = true), clearInterval(timer));
}

/** Plays a file of sound, perhaps with pictures, as fast as it was recorded; `ended` resolves at its end. */
export async function recording(session, file, video, onPcm, onJpeg) {
  const samples = await decoded(file);
  const url = URL.createObjectURL(file);
  let stopFrames = () => {};
  if (file.type.startsWith("video/")) {
    video.src = url;
    video.muted = true;
    await video.play();
    stopFrames = frames(session, video, onJpeg);
  }
  const beganMs = session.now();
  let sent = 0;
  let finish;
  const ended = new Promise((resolve) => (finish = resolve));
  const timer = setInterval(() => {
    // as much as is due: a page in the background is called seldom
    while (sent < samples.length && (1000 * sent) / RATE_HZ <= session.now() - beganMs) {
      const piece = samples.subarray(sent, sent + PIECE_SAMPLES);
      onPcm(piece, beganMs + (1000 * sent) / RATE_HZ);
      sent += piece.length;
    }
    if (sent >= samples.length) finish();
  }, 50);
  const stop = () => {
    clearInterval(timer);
    stopFrames();
    video.removeAttribute("src");
    video.load();
    URL.revokeObjectURL(url);
    finish();
  };
  return { stop, ended };
}

/** A file's sound as Int16Array at 16 kHz; a second of silence after it, so that its last turn ends. */
async function decoded(file) {
  const context = new OfflineAudioContext(1, 1, RATE_HZ);
  const sound = await context.decodeAudioData(await file.arrayBuffer());
  const mixed = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel++) {
    sound.getChannelData(channel).forEach((value, index) => (mixed[index] += value / sound.numberOfChannels));
  }
  const samples = new Int16Array(mixed.length + RATE_HZ);
  mixed.forEach((value, index) => (samples[index] = Math.max(-1, Math.min(1, value)) * 32767));
  return samples;
}
