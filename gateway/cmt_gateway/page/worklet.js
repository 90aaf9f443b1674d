// Microphone -> pieces of 16-bit PCM at the session's rate. Runs on the audio thread, so that a hidden page sends on.
class Pcm extends AudioWorkletProcessor {
  constructor({ processorOptions: { rateHz, samples } }) {
    super();
    this.step = sampleRate / rateHz; // input samples for each of ours
    this.piece = new Int16Array(samples);
    this.filled = 0;
    this.due = 0; // until the next of ours is whole
    this.sum = 0;
    this.count = 0;
  }

  process([[channel]]) {
    if (!channel) return true;
    for (const value of channel) {
      this.sum += value; // the mean of what falls into one of ours: enough of a low-pass for speech
      this.count += 1;
      this.due += 1;
      if (this.due < this.step) continue;
      this.due -= this.step;
      this.piece[this.filled++] = Math.max(-1, Math.min(1, this.sum / this.count)) * 32767;
      this.sum = this.count = 0;
      if (this.filled === this.piece.length) {
        this.port.postMessage(this.piece.slice());
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("pcm", Pcm);
