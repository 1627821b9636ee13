// The timeline: a ruler to scrub on, and a track an object with its bar, edges and keyframes.

import { colourOf, lookOf, moveKey, objectOf, setLook, setStage } from "../lib/drawing.js";
import { frameOf, markAt, snapTime } from "../lib/timeline.js";
import { button, element, follow, penFor, placeOn } from "./elements.js";
import { diamond } from "./stage.js";

export const ROW = 24;
const PAD = 12; // left and right of the tracks, so that marks at both ends can be taken
const REACH = 6;

export class Tracks {
  #editor;

  constructor(editor) {
    this.#editor = editor;
    this.ruler = element("canvas", { class: "ttom-ruler", on: { pointerdown: (event) => this.#scrub(event) } });
    this.canvas = element("canvas", {
      class: "ttom-tracks",
      on: {
        pointerdown: (event) => this.#press(event),
        pointermove: (event) => this.#hover(event),
        dblclick: (event) => this.#doubleClick(event),
      },
    });
    this.names = element("div", { class: "ttom-names" });
    this.list = element("div", { class: "ttom-rows" }, this.names, this.canvas);
  }

  get #width() {
    return Math.max(this.ruler.clientWidth - 2 * PAD, 1);
  }

  #timeOf(place, event) {
    const time = Math.min(Math.max((place.x - PAD) / this.#width, 0), 1);
    const free = !this.#editor.options.snap || event?.ctrlKey || event?.metaKey;
    return free ? time : snapTime(time, this.#editor.size.frames);
  }

  #scrub(event) {
    if (event.button !== 0) return;
    this.#editor.takeKeys();
    this.#editor.pause();
    const { currentTarget: target } = event;
    const { frames } = this.#editor.size;
    const go = (next) => this.#editor.goTo(snapTime(this.#timeOf(placeOn(target, next)), frames));
    go(event);
    follow(target, event, { move: go, end: () => {} });
  }

  #at(event) {
    const place = placeOn(this.canvas, event);
    const object = this.#editor.drawing.layout.objects[Math.floor(place.y / ROW)];
    if (!object) return { place, mark: { kind: "none" } };
    return { place, object, mark: markAt(object, place.x - PAD, this.#width, REACH) };
  }

  #hover(event) {
    const { mark, object } = this.#at(event);
    const locked = object && lookOf(this.#editor.drawing, object.id).locked;
    const cursors = { key: "pointer", enter: "ew-resize", leave: "ew-resize" };
    this.canvas.style.cursor = (!locked && cursors[mark.kind]) || "default";
  }

  #press(event) {
    const { object, mark, place } = this.#at(event);
    if (event.button !== 0 || !object) return;
    this.#editor.takeKeys(); // what is being typed belongs to the object that was selected
    this.#editor.select(object.id, mark.kind === "key" ? mark.index : null);
    const locked = lookOf(this.#editor.drawing, object.id).locked;
    if (locked || mark.kind === "bar" || mark.kind === "none") {
      this.#scrub(event);
      return;
    }
    this.#editor.pause();
    const { drawing } = this.#editor;
    if (mark.kind === "key") this.#editor.goTo(object.keyframes[mark.index].time, mark.index);
    const merge = {};
    let far = false;
    this.#editor.drag(this.canvas, event, {
      move: (next) => {
        const to = placeOn(this.canvas, next);
        far ||= Math.abs(to.x - place.x) >= 3;
        if (!far) return;
        const time = this.#timeOf(to, next);
        if (mark.kind === "key") {
          const changed = moveKey(drawing, object.id, mark.index, time);
          this.#editor.change(changed, merge);
          this.#editor.goTo(objectOf(changed, object.id).keyframes[mark.index].time, mark.index);
        } else {
          this.#editor.change(setStage(drawing, object.id, { [mark.kind]: time }), merge);
          this.#editor.goTo(time);
        }
      },
    });
  }

  #doubleClick(event) {
    const { object, mark } = this.#at(event);
    if (!object || mark.kind === "key") return;
    this.#editor.goTo(snapTime(this.#timeOf(placeOn(this.canvas, event)), this.#editor.size.frames));
    this.#editor.toggleKey();
  }

  // The names beside the tracks: made anew, for there are few and they change seldom.
  refresh() {
    const { drawing, selected } = this.#editor;
    const rows = drawing.layout.objects.map((object) => {
      const { id, name } = object;
      const { locked = false, hidden = false } = lookOf(drawing, id);
      const flag = (set, icon, title, values) => {
        const act = (event) => {
          event.stopPropagation(); // the row would be selected
          this.#editor.change(setLook(this.#editor.drawing, id, values));
        };
        return button(icon, title, act, { class: set ? "ttom-small ttom-set" : "ttom-small" });
      };
      const swatch = element("span", { class: "ttom-dot" });
      swatch.style.background = colourOf(drawing, id);
      return element(
        "div",
        {
          class: `ttom-name${id === selected ? " ttom-selected" : ""}${hidden ? " ttom-gone" : ""}`,
          title: name,
          on: {
            click: ({ detail: clicks }) => {
              this.#editor.select(id);
              if (clicks === 2) this.#editor.editName(); // no dblclick: this row is made anew in between
            },
          },
        },
        swatch,
        element("span", { class: "ttom-label", textContent: name }),
        hidden
          ? flag(true, "hidden", "Show (H)", { hidden: false })
          : flag(false, "shown", "Hide here (H); it stays in the layout", { hidden: true }),
        locked ? flag(true, "locked", "Unlock (L)", { locked: false }) : flag(false, "unlocked", "Lock (L)", { locked: true }),
      );
    });
    this.names.replaceChildren(...rows);
    this.canvas.style.height = `${drawing.layout.objects.length * ROW}px`;
  }

  // Brings the selected object's row into sight.
  reveal() {
    const index = this.#editor.drawing.layout.objects.findIndex(({ id }) => id === this.#editor.selected);
    if (index < 0) return;
    const { scrollTop, clientHeight } = this.list;
    if (index * ROW < scrollTop) this.list.scrollTop = index * ROW;
    else if ((index + 1) * ROW > scrollTop + clientHeight) this.list.scrollTop = (index + 1) * ROW - clientHeight;
  }

  draw() {
    this.#drawRuler();
    this.#drawTracks();
  }

  #drawRuler() {
    const pen = penFor(this.ruler);
    if (!pen) return;
    const { frames } = this.#editor.size;
    const style = getComputedStyle(this.ruler);
    const [quiet, accent] = ["--ttom-quiet", "--ttom-accent"].map((name) => style.getPropertyValue(name).trim());
    const height = this.ruler.clientHeight;
    const place = (frame) => Math.round(PAD + (frame / Math.max(frames - 1, 1)) * this.#width) + 0.5;
    const step = [1, 2, 4, 5, 8, 10, 16, 20, 40, 80, 100, 200].find((n) => (this.#width * n) / frames >= 34) ?? 400;
    pen.font = "10px system-ui, sans-serif";
    pen.textBaseline = "alphabetic";
    pen.textAlign = "center";
    pen.strokeStyle = pen.fillStyle = quiet;
    pen.globalAlpha = 0.8;
    pen.beginPath();
    const fine = this.#width / frames >= 4 ? 1 : step;
    for (let frame = 0; frame < frames; frame += fine) {
      pen.moveTo(place(frame), height);
      pen.lineTo(place(frame), height - (frame % step ? 3 : 6));
    }
    pen.stroke();
    const now = frameOf(this.#editor.time, frames);
    for (let frame = 0; frame < frames; frame += step) {
      if (Math.abs(place(frame) - place(now)) > 18) pen.fillText(String(frame), place(frame), height - 9);
    }
    pen.globalAlpha = 1;
    const x = Math.round(PAD + this.#editor.time * this.#width) + 0.5;
    pen.fillStyle = accent;
    const tag = Math.max(pen.measureText(String(now)).width + 10, 18);
    pen.beginPath();
    pen.roundRect(x - tag / 2, 1, tag, height - 6, 3);
    pen.moveTo(x - 4, height - 5);
    pen.lineTo(x, height);
    pen.lineTo(x + 4, height - 5);
    pen.fill();
    pen.fillStyle = "#ffffff";
    pen.fillText(String(now), x, height - 9);
  }

  #drawTracks() {
    const pen = penFor(this.canvas);
    if (!pen) return;
    const { drawing, selected, selectedKey, time } = this.#editor;
    const style = getComputedStyle(this.canvas);
    const [accent, line] = ["--ttom-accent", "--ttom-line"].map((name) => style.getPropertyValue(name).trim());
    const width = this.canvas.clientWidth;
    const place = (at) => PAD + at * this.#width;
    drawing.layout.objects.forEach((object, row) => {
      const [top, middle] = [row * ROW, row * ROW + ROW / 2];
      const { hidden } = lookOf(drawing, object.id);
      const isSelected = object.id === selected;
      if (isSelected) {
        pen.fillStyle = "#ffffff0f";
        pen.fillRect(0, top, width, ROW);
      }
      pen.fillStyle = line;
      pen.fillRect(0, top + ROW - 1, width, 1);
      const colour = colourOf(drawing, object.id);
      pen.fillStyle = pen.strokeStyle = colour;
      pen.globalAlpha = hidden ? 0.25 : isSelected ? 0.5 : 0.35;
      const [left, right] = [place(object.enter), place(object.leave)];
      pen.beginPath();
      pen.roundRect(left, middle - 5, right - left, 10, 3);
      pen.fill();
      pen.globalAlpha = hidden ? 0.4 : 1;
      pen.fillRect(left - 1, middle - 7, 2, 14);
      pen.fillRect(right - 1, middle - 7, 2, 14);
      object.keyframes.forEach((key, index) => {
        const at = { x: place(key.time), y: middle };
        const chosen = isSelected && index === selectedKey;
        pen.fillStyle = "#17181b";
        diamond(pen, at, 7.5);
        pen.fillStyle = chosen ? "#ffffff" : colour;
        diamond(pen, at, 5.5);
      });
      pen.globalAlpha = 1;
    });
    pen.fillStyle = accent;
    pen.fillRect(Math.round(place(time)), 0, 1, this.canvas.clientHeight);
  }
}
