// The stage: the canvas with the boxes of one moment, drawn and dragged.

import {
  boxUnder, fromCorners, handleAt, handlePoint, HANDLES, moved, resized, showLength, snapLines, snapMoved, snapPoint,
} from "../lib/box.js";
import { addObject, colourOf, lookOf, movePath, objectOf, setBox } from "../lib/drawing.js";
import { boxAt, frameTimes, onStage } from "../lib/layout.js";
import { element, penFor, placeOn } from "./elements.js";

const MARGIN = 10; // around the canvas, so that handles on its edge can be taken
const REACH = 7; // how near to a handle the pointer must be, in CSS pixels
const SNAP = 6;
const CLICK = 4; // a press that moves less draws nothing

export class Stage {
  #editor;
  #drag = null; // what a running drag shows: {box, x, y}, the last two being lines it snapped to

  constructor(editor) {
    this.#editor = editor;
    this.canvas = element("canvas", {
      class: "ttom-stage",
      on: {
        pointerdown: (event) => this.#press(event),
        pointermove: (event) => this.#hover(event),
      },
    });
  }

  // The part of the canvas element that stands for the video's canvas.
  get #area() {
    const { width, height } = this.#editor.size;
    const [across, down] = [this.canvas.clientWidth - 2 * MARGIN, this.canvas.clientHeight - 2 * MARGIN];
    const scale = Math.max(Math.min(across / width, down / height), 1e-6);
    const [w, h] = [width * scale, height * scale];
    return { x: MARGIN + (across - w) / 2, y: MARGIN + (down - h) / 2, w, h };
  }

  #pointOf(event) {
    const [place, area] = [placeOn(this.canvas, event), this.#area];
    return { x: (place.x - area.x) / area.w, y: (place.y - area.y) / area.h };
  }

  #reach(pixels) {
    const area = this.#area;
    return { x: pixels / area.w, y: pixels / area.h };
  }

  // The boxes that can be taken at this moment, null for those that cannot.
  #takeable() {
    const { drawing, time } = this.#editor;
    return drawing.layout.objects.map((object) => {
      const { locked, hidden } = lookOf(drawing, object.id);
      return locked || hidden || !onStage(object, time) ? null : boxAt(object, time);
    });
  }

  #selectedBox() {
    const { drawing, selected } = this.#editor;
    const index = drawing.layout.objects.findIndex((object) => object.id === selected);
    return index < 0 ? null : this.#takeable()[index];
  }

  #hit(point) {
    const selected = this.#selectedBox();
    const reach = this.#reach(REACH);
    if (selected) {
      const handle = handleAt(selected, point, reach);
      if (handle) return { handle, box: selected };
    }
    if (this.#editor.tool === "draw") return null;
    const boxes = this.#takeable();
    const inside = selected && boxUnder([selected], point) === 0;
    const index = boxUnder(boxes, point);
    if (index < 0) return null;
    const smaller = inside && boxes[index].w * boxes[index].h < selected.w * selected.h;
    if (inside && !smaller) return { box: selected };
    return { box: boxes[index], id: this.#editor.drawing.layout.objects[index].id };
  }

  #hover(event) {
    if (this.#drag) return;
    const hit = this.#hit(this.#pointOf(event));
    const cursors = { n: "ns", s: "ns", e: "ew", w: "ew", nw: "nwse", se: "nwse", ne: "nesw", sw: "nesw" };
    this.canvas.style.cursor = hit?.handle ? `${cursors[hit.handle]}-resize` : hit ? "move" : "crosshair";
  }

  #press(event) {
    if (event.button !== 0 || this.#editor.fault) return;
    this.#editor.takeKeys();
    this.#editor.pause();
    const start = this.#pointOf(event);
    const hit = this.#hit(start);
    if (hit?.id) this.#editor.select(hit.id);
    const change = hit?.handle ? this.#resizing(hit) : hit ? this.#moving(hit) : this.#drawing(start);
    let far = false;
    this.#editor.drag(this.canvas, event, {
      move: (next) => {
        const [point, area] = [this.#pointOf(next), this.#area];
        const [dx, dy] = [point.x - start.x, point.y - start.y];
        far ||= Math.hypot(dx * area.w, dy * area.h) >= CLICK;
        if (far) change(dx, dy, next);
      },
      end: () => {
        this.#drag = null;
        if (!far && !hit) this.#editor.select(null);
      },
    });
  }

  // Lines to snap to: the canvas's and every other visible box's.
  #lines(id) {
    const { drawing, time } = this.#editor;
    const others = drawing.layout.objects.filter(
      (object) => object.id !== id && !lookOf(drawing, object.id).hidden && onStage(object, time),
    );
    return snapLines(others.map((object) => boxAt(object, time)));
  }

  #snapping(event) {
    return this.#editor.options.snap && !event.ctrlKey && !event.metaKey;
  }

  #moving({ box }) {
    const { selected: id, time, drawing } = this.#editor;
    const lines = this.#lines(id);
    const merge = {};
    return (dx, dy, event) => {
      if (event.shiftKey) [dx, dy] = Math.abs(dx) > Math.abs(dy) ? [dx, 0] : [0, dy];
      let to = moved(box, dx, dy);
      let snapped = {};
      if (this.#snapping(event)) {
        snapped = snapMoved(to, lines, this.#reach(SNAP));
        to = snapped.box;
      }
      this.#drag = { box: to, ...snapped };
      this.#editor.change(
        event.altKey
          ? movePath(drawing, id, to.x - box.x, to.y - box.y)
          : setBox(drawing, id, time, to, this.#editor.size.frames),
        merge,
      );
    };
  }

  #resizing({ box, handle }) {
    const { selected: id, time, drawing } = this.#editor;
    const lines = this.#lines(id);
    const merge = {};
    return (dx, dy, event) => {
      const corner = handlePoint(box, handle);
      let snapped = {};
      if (this.#snapping(event) && !event.shiftKey) {
        snapped = snapPoint({ x: corner.x + dx, y: corner.y + dy }, lines, this.#reach(SNAP));
        [dx, dy] = [snapped.point.x - corner.x, snapped.point.y - corner.y];
        if (handle === "n" || handle === "s") snapped.x = null;
        if (handle === "e" || handle === "w") snapped.y = null;
      }
      const to = resized(box, handle, dx, dy, event.shiftKey);
      this.#drag = { box: to, x: snapped.x, y: snapped.y };
      this.#editor.change(setBox(drawing, id, time, to, this.#editor.size.frames), merge);
    };
  }

  #drawing(start) {
    const { drawing, time } = this.#editor;
    const lines = this.#lines(null);
    const merge = {};
    return (dx, dy, event) => {
      let [from, to] = [start, { x: start.x + dx, y: start.y + dy }];
      let snapped = {};
      if (this.#snapping(event)) {
        from = snapPoint(from, lines, this.#reach(SNAP)).point;
        snapped = snapPoint(to, lines, this.#reach(SNAP));
        to = snapped.point;
      }
      const box = fromCorners(from, to);
      this.#drag = { box, x: snapped.x, y: snapped.y };
      const added = addObject(drawing, box, time);
      this.#editor.change(added.drawing, merge);
      this.#editor.select(added.id);
      this.#editor.tool = "select";
    };
  }

  draw() {
    const pen = penFor(this.canvas);
    if (!pen) return;
    const area = this.#area;
    this.#drawBackground(pen, area);
    const { drawing, selected, time, options } = this.#editor;
    const objects = drawing.layout.objects.filter((object) => !lookOf(drawing, object.id).hidden);
    const current = objectOf(drawing, selected);
    pen.save();
    pen.beginPath();
    pen.rect(area.x - MARGIN, area.y - MARGIN, area.w + 2 * MARGIN, area.h + 2 * MARGIN);
    pen.clip();
    if (options.onion) for (const object of objects) this.#drawOnion(pen, area, object, object === current);
    for (const object of objects) {
      if (object !== current && onStage(object, time)) this.#drawBox(pen, area, object, false);
    }
    if (current && objects.includes(current)) this.#drawBox(pen, area, current, true);
    this.#drawGuides(pen, area);
    pen.restore();
  }

  #drawBackground(pen, area) {
    const { frames, time } = this.#editor;
    pen.fillStyle = "#17181b";
    pen.fillRect(area.x, area.y, area.w, area.h);
    const frame = frames[Math.round(time * (frames.length - 1))];
    if (frame?.complete && frame.naturalWidth) {
      pen.imageSmoothingEnabled = frame.naturalWidth * 2 > area.w;
      pen.drawImage(frame, area.x, area.y, area.w, area.h);
    } else {
      pen.strokeStyle = "#ffffff0d";
      pen.lineWidth = 1;
      pen.beginPath();
      for (const part of [0.25, 0.5, 0.75]) {
        const [x, y] = [Math.round(area.x + part * area.w) + 0.5, Math.round(area.y + part * area.h) + 0.5];
        pen.moveTo(x, area.y);
        pen.lineTo(x, area.y + area.h);
        pen.moveTo(area.x, y);
        pen.lineTo(area.x + area.w, y);
      }
      pen.stroke();
    }
    pen.strokeStyle = "#ffffff26";
    pen.strokeRect(area.x - 0.5, area.y - 0.5, area.w + 1, area.h + 1);
  }

  // Where an object was and will be: the boxes of its keyframes and, if it is selected, its path.
  #drawOnion(pen, area, object, selected) {
    if (object.keyframes.length < 2) return;
    const { drawing, time } = this.#editor;
    pen.strokeStyle = pen.fillStyle = colourOf(drawing, object.id);
    pen.lineWidth = 1;
    const keys = selected ? object.keyframes : neighbours(object.keyframes, time);
    for (const key of keys) {
      const away = Math.abs(key.time - time);
      pen.globalAlpha = (selected ? 0.55 : 0.3) * (1 - 0.5 * away);
      pen.setLineDash(key.time < time ? [2, 3] : [5, 3]);
      const { x, y, w, h } = onArea(key.box, area);
      pen.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
    }
    pen.setLineDash([]);
    pen.globalAlpha = 0.8;
    if (selected) {
      const path = frameTimes(Math.min(Math.max(this.#editor.size.frames, 2), 121)).filter((at) => onStage(object, at));
      const centres = path.map((at) => centre(onArea(boxAt(object, at), area)));
      pen.beginPath();
      for (const { x, y } of centres) pen.lineTo(x, y);
      pen.globalAlpha = 0.5;
      pen.stroke();
      pen.globalAlpha = 0.9;
      for (const { x, y } of centres) pen.fillRect(x - 1, y - 1, 2, 2);
      for (const key of object.keyframes) diamond(pen, centre(onArea(key.box, area)), 4);
    }
    pen.globalAlpha = 1;
  }

  #drawBox(pen, area, object, selected) {
    const { drawing, time } = this.#editor;
    const colour = colourOf(drawing, object.id);
    const { locked } = lookOf(drawing, object.id);
    const present = onStage(object, time);
    const { x, y, w, h } = onArea(boxAt(object, time), area);
    pen.globalAlpha = present ? 1 : 0.4;
    pen.fillStyle = pen.strokeStyle = colour;
    if (present) {
      pen.globalAlpha = selected ? 0.22 : 0.12;
      pen.fillRect(x, y, w, h);
      pen.globalAlpha = 1;
    }
    pen.lineWidth = selected ? 2 : 1.5;
    pen.setLineDash(present ? [] : [3, 4]);
    pen.strokeRect(x, y, w, h);
    pen.setLineDash([]);
    this.#drawLabel(pen, area, { x, y, w, h }, present ? object.name : `${object.name} (off stage)`, colour, locked);
    pen.globalAlpha = 1;
    if (!selected || !present || locked) return;
    pen.fillStyle = "#ffffff";
    pen.strokeStyle = "#17181b";
    pen.lineWidth = 1;
    for (const handle of w < 26 || h < 26 ? ["nw", "ne", "se", "sw"] : HANDLES) {
      const at = handlePoint({ x, y, w, h }, handle);
      pen.fillRect(at.x - 3, at.y - 3, 6, 6);
      pen.strokeRect(at.x - 3.5, at.y - 3.5, 7, 7);
    }
  }

  // The name on a tag of the object's colour, above its box where there is room, and always on the canvas.
  #drawLabel(pen, area, box, name, colour, locked) {
    pen.font = "11px system-ui, sans-serif";
    const text = fitted(pen, locked ? `${name} · locked` : name, Math.max(box.w, 90));
    const width = pen.measureText(text).width + 8;
    const left = Math.min(Math.max(box.x - 1, area.x), area.x + area.w - width);
    const top = box.y - 16 < area.y - MARGIN ? box.y + 1 : box.y - 16;
    pen.fillStyle = colour;
    pen.fillRect(left, top, width, 15);
    pen.fillStyle = light(colour) ? "#000000" : "#ffffff";
    pen.textBaseline = "middle";
    pen.fillText(text, left + 4, top + 8);
  }

  // While something is dragged: the lines it snapped to, and its size.
  #drawGuides(pen, area) {
    if (!this.#drag) return;
    const { box, x, y } = this.#drag;
    pen.strokeStyle = "#ff5fa2";
    pen.lineWidth = 1;
    pen.beginPath();
    if (typeof x === "number") {
      pen.moveTo(area.x + x * area.w, area.y);
      pen.lineTo(area.x + x * area.w, area.y + area.h);
    }
    if (typeof y === "number") {
      pen.moveTo(area.x, area.y + y * area.h);
      pen.lineTo(area.x + area.w, area.y + y * area.h);
    }
    pen.stroke();
    const { width, height } = this.#editor.size;
    const { unit } = this.#editor.options;
    const show = (share, pixels) => showLength(share, pixels, unit);
    const text =
      `${show(box.x, width)}, ${show(box.y, height)}   ${show(box.w, width)} × ${show(box.h, height)} ${unit}`;
    pen.font = "11px system-ui, sans-serif";
    const wide = pen.measureText(text).width + 12;
    const at = onArea(box, area);
    const left = Math.min(Math.max(at.x + at.w / 2 - wide / 2, area.x), area.x + area.w - wide);
    const top = at.y + at.h + 24 > area.y + area.h ? at.y + at.h - 22 : at.y + at.h + 5;
    pen.fillStyle = "#000000cc";
    pen.fillRect(left, top, wide, 17);
    pen.fillStyle = "#ffffff";
    pen.textBaseline = "middle";
    pen.fillText(text, left + 6, top + 9);
  }
}

const onArea = (box, area) => ({
  x: area.x + box.x * area.w, y: area.y + box.y * area.h, w: box.w * area.w, h: box.h * area.h,
});
const centre = ({ x, y, w, h }) => ({ x: x + w / 2, y: y + h / 2 });

function neighbours(keyframes, time) {
  const before = keyframes.findLast((key) => key.time < time);
  const after = keyframes.find((key) => key.time > time);
  return [before, after].filter(Boolean);
}

export function diamond(pen, { x, y }, radius) {
  pen.beginPath();
  pen.moveTo(x, y - radius);
  pen.lineTo(x + radius, y);
  pen.lineTo(x, y + radius);
  pen.lineTo(x - radius, y);
  pen.closePath();
  pen.fill();
}

function fitted(pen, text, room) {
  if (pen.measureText(text).width <= room) return text;
  let letters = [...text].slice(0, 60);
  while (letters.length > 1 && pen.measureText(`${letters.join("")}…`).width > room) letters = letters.slice(0, -1);
  return `${letters.join("")}…`;
}

function light(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.3 * red + 0.59 * green + 0.11 * blue > 120;
}
