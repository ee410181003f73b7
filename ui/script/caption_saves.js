// Decides which captions are saved, and when a save that failed is repeated. Without the document, so that
// tests run it in node.

// `send(place, text)` resolves to {state, ...}, where state is "saved", "rejected" by the studio, or
// "unreachable". The other fields are passed on to `show(place, text, result)`.
class CaptionSaves {
  constructor(send, show, schedule) {
    this.send = send;
    this.show = show;
    this.schedule = schedule; // runs a function later
    this.unsaved = new Map(); // place -> text that has not been saved
    this.sending = new Map(); // place -> text that is on its way to the server
    this.unreachable = new Set(); // places whose last save got no response
    this.isScheduled = false;
  }

  edit(place, text) {
    this.unsaved.set(place, text);
  }

  // Whether a field that is left with this text must be saved.
  isDue(place, text) {
    return this.unsaved.has(place) && this.sending.get(place) !== text;
  }

  async save(place, text) {
    this.sending.set(place, text);
    const result = await this.send(place, text);
    if (this.sending.get(place) === text) this.sending.delete(place);
    const isLatest = (this.unsaved.get(place) ?? text) === text;
    if (result.state === 'unreachable') {
      if (!this.unsaved.has(place)) this.unsaved.set(place, text);
      this.unreachable.add(place);
      this.retryLater();
    } else if (isLatest) {
      this.unreachable.delete(place);
      if (result.state === 'saved') this.unsaved.delete(place);
    }
    this.show(place, text, result);
    return result;
  }

  retryLater() {
    if (this.isScheduled) return;
    this.isScheduled = true;
    this.schedule(() => {
      this.isScheduled = false;
      return this.retry();
    });
  }

  // Repeats the saves that got no response, one after another, until one gets no response again. A caption
  // that is being edited is saved when its field is left.
  async retry(editedPlace = this.editedPlace?.()) {
    for (const place of [...this.unreachable]) {
      if (place === editedPlace || this.sending.has(place)) continue;
      const result = await this.save(place, this.unsaved.get(place));
      if (result.state === 'unreachable') return;
    }
    if (this.unreachable.size) this.retryLater();
  }

  // Takes over what an earlier page could not save; all of it is saved soon.
  takeOver(captions) {
    for (const [place, text] of captions) {
      this.unsaved.set(place, text);
      this.unreachable.add(place);
    }
    if (captions.length) this.retryLater();
  }
}

globalThis.impasto = { ...globalThis.impasto, CaptionSaves };
