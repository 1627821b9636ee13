// The layout editor: a stage with the boxes of one moment, a timeline, and fields for numbers and
// names. It knows no ComfyUI: its host gives it a value and a size, and is told of every change.

import { moved, resized } from "../lib/box.js";
import {
  addKey, copyJson, drawingJson, duplicateObject, emptyDrawing, keyAt, lookOf, objectOf, openDrawing, pasteJson,
  removeKey, removeObject, setBox, setLook, setStage,
} from "../lib/drawing.js";
import { record, redo, startHistory, undo } from "../lib/history.js";
import { LayoutError, boxAt, parseLayout } from "../lib/layout.js";
import { frameOf, timeOf } from "../lib/timeline.js";
import { button, element, follow, icon } from "./elements.js";
import { Inspector } from "./inspector.js";
import { Stage } from "./stage.js";
import { Tracks } from "./tracks.js";

const FRAMES_A_SECOND = 12; // of the preview; the video's own rate is not known here
const HINT = "Drag on the canvas to draw a box; move to another frame and drag the box to make it move.";

export class LayoutEditor {
  #history = startHistory(emptyDrawing());
  #host;
  #cancel = null; // takes a running drag back
  #playing = null;
  #pending = 0;
  #saying = 0;
  #upstream = "";
  #written = ""; // the value as the host last had it, or gave it
  #observer;

  time = 0;
  selected = null;
  selectedKey = null;
  tool = "select";
  options = { snap: true, onion: true, unit: "px" };
  frames = []; // images of the background, evenly spread over the clip
  fault = ""; // why the value cannot be read, if it cannot

  // host: {context(): {width, height, frames, prompt}, onChange(value, look)}
  constructor(host) {
    this.#host = host;
    this.stage = new Stage(this);
    this.tracks = new Tracks(this);
    this.inspector = new Inspector(this);
    this.#build();
    this.#observer = new ResizeObserver(() => this.render());
    this.#observer.observe(this.stage.canvas);
    this.#observer.observe(this.tracks.ruler);
    this.refresh();
  }

  // ---- what the host uses ------------------------------------------------------------------------

  // Shows a value and the looks beside it, and forgets what could be undone. A value that cannot be
  // read stays as it is until it is replaced.
  open(text, look = {}) {
    if (text === this.#written) return;
    this.#written = text;
    try {
      this.#history = startHistory(openDrawing(text, look));
      this.fault = "";
    } catch (error) {
      if (!(error instanceof LayoutError)) throw error;
      this.#history = startHistory(emptyDrawing());
      this.fault = error.message;
    }
    if (!objectOf(this.drawing, this.selected)) this.select(null);
    this.refresh();
  }

  // A layout from upstream, to be taken by the button, and whether it was used instead of the drawing.
  offer(text, used) {
    this.#upstream = text;
    if (text && used) this.say("The layout from upstream was used; take it with the blue arrow to change it.");
    this.refresh();
  }

  // Pictures to draw on, by their addresses.
  showFrames(addresses) {
    this.frames = addresses.map((address) => {
      const image = new Image();
      image.onload = () => this.render();
      image.src = address;
      return image;
    });
    this.render();
  }

  // After any change, here or in the host's context: everything outside the canvases, then those.
  refresh() {
    this.#showButtons();
    this.tracks.refresh();
    this.inspector.refresh();
    this.#showFault();
    this.render();
  }

  dispose() {
    this.pause();
    cancelAnimationFrame(this.#pending);
    clearTimeout(this.#saying);
    this.#observer.disconnect();
  }

  // ---- what the stage, the tracks and the inspector use -------------------------------------------

  get drawing() {
    return this.#history.present;
  }

  get size() {
    const whole = (value, least) => Math.max(Math.round(Number(value)) || least, least);
    const { width, height, frames } = this.#host.context();
    return { width: whole(width, 1), height: whole(height, 1), frames: whole(frames, 1) };
  }

  // A new drawing. Changes of the same `merge` are one step of undo.
  change(drawing, merge = null) {
    this.#history = record(this.#history, drawing, merge);
    this.#tell();
  }

  // Follows a drag that changes the drawing; Escape, or a pointer that is lost, takes all of it back.
  drag(target, event, { move, end = () => {} }) {
    const before = this.#history;
    let alive = true;
    this.#cancel = () => {
      alive = false;
      this.#history = before;
      this.#tell();
    };
    follow(target, event, {
      move: (next) => {
        if (alive) move(next);
        this.render();
      },
      end: (_, cancelled) => {
        if (cancelled && alive) this.#cancel();
        this.#cancel = null;
        end();
        this.render();
      },
    });
  }

  select(id, key = null) {
    [this.selected, this.selectedKey] = [id, key];
    this.refresh();
    this.tracks.reveal();
  }

  goTo(time, key = null) {
    this.time = time;
    const object = objectOf(this.drawing, this.selected);
    const at = object ? keyAt(object, time, this.size.frames) : -1;
    this.selectedKey = key ?? (at >= 0 ? at : null);
    this.refresh();
  }

  toggleKey() {
    const object = objectOf(this.drawing, this.selected);
    if (!object || this.isLocked) return;
    const { frames } = this.size;
    const at = keyAt(object, this.time, frames);
    if (at < 0) this.change(addKey(this.drawing, object.id, this.time, frames));
    else this.change(removeKey(this.drawing, object.id, at));
    this.goTo(this.time);
  }

  editName() {
    this.inspector.edit("name");
  }

  // The keys go to a text area nobody sees: ComfyUI leaves keys, undo and the clipboard to whatever
  // text is being edited.
  takeKeys() {
    this.keys.focus({ preventScroll: true });
  }

  pause() {
    if (!this.#playing) return;
    cancelAnimationFrame(this.#playing);
    this.#playing = null;
    this.goTo(timeOf(frameOf(this.time, this.size.frames), this.size.frames));
  }

  render() {
    this.#pending ||= requestAnimationFrame(() => {
      this.#pending = 0;
      this.stage.draw();
      this.tracks.draw();
    });
  }

  // ---- building ----------------------------------------------------------------------------------

  #buttons = {};

  #build() {
    const acts = {
      draw: ["Draw a box (B); also over others", () => this.#setTool(this.tool === "draw" ? "select" : "draw")],
      undo: ["Undo (Ctrl+Z)", () => this.#step(undo)],
      redo: ["Redo (Ctrl+Shift+Z)", () => this.#step(redo)],
      duplicate: ["Duplicate (Ctrl+D)", () => this.#duplicate()],
      remove: ["Delete the object (Delete)", () => this.#remove()],
      snap: ["Snap to edges, centres and frames (S); Ctrl while dragging does without", () => this.#toggle("snap")],
      onion: ["Onion skin: boxes of other moments, and the path (O)", () => this.#toggle("onion")],
      json: ["The layout as JSON, to copy and to paste", () => this.#showJson()],
      upstream: ["Take the layout from upstream", () => this.#takeUpstream()],
      enlarge: ["Fill the screen (F)", () => this.#enlarge()],
      play: ["Play (Space)", () => this.#play()],
      previous: ["To the keyframe before (Shift+,)", () => this.#toKey(-1)],
      key: ["Set or remove a keyframe here (K)", () => this.toggleKey()],
      next: ["To the next keyframe (Shift+.)", () => this.#toKey(1)],
    };
    for (const [name, [title, act]] of Object.entries(acts)) {
      this.#buttons[name] = button(name, title, () => {
        this.takeKeys();
        act();
      }, { data: { act: name } });
    }
    const b = this.#buttons;
    const gap = () => element("span", { class: "ttom-gap" });
    this.keys = element("textarea", {
      class: "ttom-keys",
      spellcheck: false,
      attributes: { "aria-label": "Layout editor; arrow keys move the selected box", autocomplete: "off" },
      on: {
        copy: (event) => this.#copy(event),
        cut: (event) => this.#copy(event) && this.#remove(),
        paste: (event) => this.#paste(event),
        input: () => (this.keys.value = ""),
      },
    });
    this.notice = element("div", { class: "ttom-notice", attributes: { role: "status" } });
    this.veil = element("div", { class: "ttom-veil", hidden: true });
    this.element = element(
      "div",
      { class: "ttom-editor", on: { keydown: (event) => this.#keyDown(event), wheel: (event) => this.#wheel(event) } },
      element("div", { class: "ttom-bar" }, b.draw, gap(), b.undo, b.redo, gap(), b.duplicate, b.remove, gap(),
        b.snap, b.onion, gap(), b.upstream, b.json, b.enlarge),
      element("div", { class: "ttom-view" }, this.stage.canvas, this.keys, this.veil),
      element("div", { class: "ttom-head" },
        element("div", { class: "ttom-transport" }, b.play, b.previous, b.key, b.next), this.tracks.ruler),
      this.tracks.list,
      this.inspector.element,
      this.notice,
    );
    // A press on the editor is not a press on the node below it. Other buttons still move the graph.
    for (const kind of ["pointerdown", "mousedown", "click", "dblclick", "contextmenu"]) {
      this.element.addEventListener(kind, (event) => event.button === 1 || event.stopPropagation());
    }
    // Without this the press that gave the keys to us would take them away again.
    for (const canvas of [this.stage.canvas, this.tracks.ruler, this.tracks.canvas]) {
      canvas.addEventListener("mousedown", (event) => event.preventDefault());
    }
  }

  // ---- showing -----------------------------------------------------------------------------------

  #showButtons() {
    const object = objectOf(this.drawing, this.selected);
    const b = this.#buttons;
    b.undo.disabled = !this.#history.past.length;
    b.redo.disabled = !this.#history.future.length;
    for (const name of ["duplicate", "remove", "key", "previous", "next"]) b[name].disabled = !object;
    b.upstream.hidden = !this.#upstream;
    for (const name of ["snap", "onion"]) press(b[name], this.options[name]);
    press(b.draw, this.tool === "draw");
    press(b.key, Boolean(object) && keyAt(object, this.time, this.size.frames) >= 0);
    b.play.replaceChildren(icon(this.#playing ? "pause" : "play"));
  }

  #showFault() {
    if (this.fault) {
      this.#veil(
        element("p", { textContent: `This drawing cannot be read. ${this.fault}` }),
        element("p", {},
          textButton("Show it", () => this.#showJson()),
          textButton("Start anew", () => {
            this.fault = "";
            this.change(emptyDrawing());
            this.#veil();
          }, "ttom-danger")),
      );
    } else if (this.veil.dataset.kind !== "json") this.#veil();
    const empty = !this.fault && !this.drawing.layout.objects.length;
    if (!this.notice.dataset.lasting) this.notice.textContent = empty ? HINT : this.#advice();
  }

  // What of the selected object will not work, before a run says so.
  #advice() {
    const object = objectOf(this.drawing, this.selected);
    const { prompt = "" } = this.#host.context();
    const lacks = object && prompt.trim() && !prompt.toLowerCase().includes(object.phrase.toLowerCase());
    this.inspector.mark("phrase", Boolean(lacks));
    return lacks ? `“${object.phrase}” is not in the prompt; write the words that name it there.` : "";
  }

  // Says something in the line below, for a while.
  say(text) {
    this.notice.textContent = text;
    this.notice.dataset.lasting = "yes";
    clearTimeout(this.#saying);
    this.#saying = setTimeout(() => {
      delete this.notice.dataset.lasting;
      this.#showFault();
    }, 6000);
  }

  #veil(...content) {
    this.veil.replaceChildren(...content);
    this.veil.hidden = !content.length;
    delete this.veil.dataset.kind;
  }

  #showJson() {
    if (this.veil.dataset.kind === "json") {
      this.#veil();
      this.refresh();
      return;
    }
    const text = element("textarea", {
      class: "ttom-json",
      spellcheck: false,
      value: this.fault ? this.#written : copyJson(this.drawing),
      attributes: { "aria-label": "The layout as JSON" },
    });
    const said = element("p", { class: "ttom-said" });
    this.#veil(
      text,
      said,
      element("p", {},
        textButton("Copy", () => {
          text.select();
          // The older way works on a plain http address too, where many reach their ComfyUI.
          said.textContent = document.execCommand("copy") ? "Copied." : "Press Ctrl+C to copy.";
        }),
        textButton("Use this", () => {
          try {
            const opened = openDrawing(text.value, this.drawing.look);
            this.fault = "";
            this.change(opened);
            this.#veil();
            this.refresh();
          } catch (error) {
            if (!(error instanceof LayoutError)) throw error;
            said.textContent = error.message;
          }
        }),
        textButton("Close", () => (this.#veil(), this.refresh()))),
    );
    this.veil.dataset.kind = "json";
    text.focus({ preventScroll: true });
  }

  // ---- acting ------------------------------------------------------------------------------------

  #tell() {
    try {
      this.#written = drawingJson(this.drawing);
      this.#host.onChange(this.#written, this.drawing.look);
    } catch (error) {
      if (!(error instanceof LayoutError)) throw error;
      this.say(error.message);
    }
    if (!objectOf(this.drawing, this.selected)) [this.selected, this.selectedKey] = [null, null];
    this.refresh();
  }

  get isLocked() {
    return this.selected !== null && lookOf(this.drawing, this.selected).locked === true;
  }

  #withObject(change) {
    if (objectOf(this.drawing, this.selected)) this.change(change(this.selected));
  }

  #step(direction) {
    this.#history = direction(this.#history);
    this.#tell();
  }

  #setTool(tool) {
    this.tool = tool;
    this.refresh();
  }

  #toggle(option) {
    this.options[option] = !this.options[option];
    this.refresh();
  }

  #duplicate() {
    if (!this.selected) return;
    const { drawing, id } = duplicateObject(this.drawing, this.selected);
    this.change(drawing);
    this.select(id);
  }

  #remove() {
    if (!this.selected || this.isLocked) return;
    this.change(removeObject(this.drawing, this.selected));
  }

  #toKey(direction) {
    const object = objectOf(this.drawing, this.selected);
    if (!object) return;
    const times = object.keyframes.map((key) => key.time);
    const next = direction > 0 ? times.find((at) => at > this.time + 1e-6) : times.findLast((at) => at < this.time - 1e-6);
    if (next !== undefined) this.goTo(next);
  }

  #play() {
    if (this.#playing) {
      this.pause();
      this.refresh();
      return;
    }
    const { frames } = this.size;
    const length = (Math.max(frames, 2) / FRAMES_A_SECOND) * 1000;
    const start = performance.now() - (this.time >= 1 ? 0 : this.time) * length;
    const advance = (now) => {
      this.time = timeOf(frameOf((((now - start) % length) + length) % length / length, frames), frames);
      this.render();
      this.inspector.refresh();
      this.#playing = requestAnimationFrame(advance);
    };
    this.#playing = requestAnimationFrame(advance);
    this.refresh();
  }

  #takeUpstream() {
    try {
      const layout = parseLayout(this.#upstream);
      this.change({ layout, look: {} });
      this.select(layout.objects[0]?.id ?? null);
    } catch (error) {
      if (!(error instanceof LayoutError)) throw error;
      this.say(error.message);
    }
  }

  #enlarge() {
    if (document.fullscreenElement === this.element) document.exitFullscreen();
    else this.element.requestFullscreen?.().catch(() => this.say("The browser does not let this fill the screen."));
  }

  #copy(event) {
    if (!this.drawing.layout.objects.length) return false;
    event.clipboardData.setData("text/plain", copyJson(this.drawing, this.selected ? [this.selected] : null));
    event.preventDefault();
    event.stopPropagation();
    this.say(this.selected ? "Copied the object, as JSON." : "Copied the layout, as JSON.");
    return true;
  }

  #paste(event) {
    event.preventDefault();
    event.stopPropagation();
    try {
      const { drawing, id } = pasteJson(this.drawing, event.clipboardData.getData("text/plain"));
      this.change(drawing);
      this.select(id);
    } catch (error) {
      if (!(error instanceof LayoutError)) throw error;
      this.say(error.message);
    }
  }

  #wheel(event) {
    if (this.tracks.list.contains(event.target) && this.tracks.list.scrollHeight > this.tracks.list.clientHeight) {
      event.stopPropagation();
    }
  }

  // ---- keys --------------------------------------------------------------------------------------

  #keyDown(event) {
    const typing = event.target !== this.keys && event.target.matches("input, textarea, select");
    if (typing) {
      event.stopPropagation();
      return;
    }
    const act = this.#keyAct(event);
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }

  #keyAct({ key, ctrlKey, metaKey, shiftKey, altKey }) {
    const command = ctrlKey || metaKey;
    const letter = key.toLowerCase();
    if (command) {
      if (letter === "z") return () => this.#step(shiftKey ? redo : undo);
      if (letter === "y") return () => this.#step(redo);
      if (letter === "d") return () => this.#duplicate();
      return null; // copy and paste come as events of their own; the rest is ComfyUI's
    }
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (arrows[key]) return this.selected ? () => this.#nudge(...arrows[key], shiftKey ? 10 : 1, altKey) : null;
    const { frames } = this.size;
    const now = frameOf(this.time, frames);
    const move = (frame) => () => (this.pause(), this.goTo(timeOf(frame, frames)));
    const acts = {
      delete: () => this.#remove(),
      backspace: () => this.#remove(),
      escape: () => (this.#cancel ? this.#cancel() : this.#escape()),
      " ": () => this.#play(),
      b: () => this.#setTool(this.tool === "draw" ? "select" : "draw"),
      k: () => this.toggleKey(),
      s: () => this.#toggle("snap"),
      o: () => this.#toggle("onion"),
      f: () => this.#enlarge(),
      h: () => this.#withObject((id) => setLook(this.drawing, id, { hidden: !lookOf(this.drawing, id).hidden })),
      l: () => this.#withObject((id) => setLook(this.drawing, id, { locked: !lookOf(this.drawing, id).locked })),
      ",": move(now - 1),
      ".": move(now + 1),
      "<": () => this.#toKey(-1),
      ">": () => this.#toKey(1),
      home: move(0),
      end: move(frames - 1),
      "[": () => this.isLocked || this.#withObject((id) => setStage(this.drawing, id, { enter: this.time })),
      "]": () => this.isLocked || this.#withObject((id) => setStage(this.drawing, id, { leave: this.time })),
      f2: () => this.selected && this.editName(),
      enter: () => this.selected && this.editName(),
    };
    return acts[letter] ?? null;
  }

  #escape() {
    if (this.tool === "draw") this.#setTool("select");
    else this.select(null);
  }

  // Arrow keys move the box by pixels; with Alt they move its right and lower edge.
  #nudge(across, down, pixels, edge) {
    const object = objectOf(this.drawing, this.selected);
    if (!object || this.isLocked) return;
    const { width, height, frames } = this.size;
    const [dx, dy] = [(across * pixels) / width, (down * pixels) / height];
    const box = boxAt(object, this.time);
    const to = edge ? resized(box, "se", dx, dy) : moved(box, dx, dy);
    this.change(setBox(this.drawing, object.id, this.time, to, frames), `nudge ${object.id} ${this.time}`);
    this.goTo(this.time);
  }
}

function press(made, pressed) {
  made.setAttribute("aria-pressed", String(pressed));
}

function textButton(text, act, extra = "") {
  return element("button", { type: "button", class: `ttom-text-button ${extra}`, textContent: text, on: { click: act } });
}
