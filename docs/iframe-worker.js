// The search of the theme runs in a worker. Browsers start none for pages that are opened from a folder
// (file://), so there the script runs in a hidden frame of the page, behind the same interface.
"use strict";
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      document.body.append(frame);
      const inside = frame.contentWindow;
      const answer = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      inside.postMessage = answer;  // what the script calls to answer
      inside.importScripts = (...urls) => Promise.all(urls.map((from) => this.load(inside, from)));
      this.inside = inside;
      this.loaded = this.load(inside, url);
    }
    load(inside, url) {
      return new Promise((done, failed) => {
        const script = inside.document.createElement("script");
        script.src = new URL(url, location.href).href;
        script.onload = done;
        script.onerror = failed;
        inside.document.body.append(script);
      });
    }
    postMessage(data) {
      this.loaded = this.loaded.then(() => {
        this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }));
      });
    }
    terminate() {
      this.inside.frameElement.remove();
    }
  };
}
