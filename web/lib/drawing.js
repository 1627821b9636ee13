// A drawing: the layout, and how the editor shows its objects. Every change gives a new drawing and
// leaves the old one as it was, which is what undo keeps.
//
// look: {[id]: {colour?, locked?, hidden?}}; it is the editor's own and no part of the layout.

import { tidy } from "./box.js";
import { LayoutError, boxAt, emptyLayout, layoutJson, parseLayout } from "./layout.js";
import { nearTime, tidyTime } from "./timeline.js";

// Distinct on dark and light, and under the common colour blindnesses (Okabe and Ito 2008); the same
// as in the core's pictures, save for the last, which is too dark on a dark node.
export const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#f0e442"];
const COLOUR = /^#[0-9a-f]{6}$/i;

export const emptyDrawing = () => ({ layout: emptyLayout(), look: {} });

// From the widget's value ("" when nothing is drawn) and the looks beside it, of which only what is
// sound is taken: they are no more than looks.
export function openDrawing(text, look = {}) {
  const layout = text.trim() ? parseLayout(text) : emptyLayout();
  return { layout, look: soundLook(look, layout) };
}

export function drawingJson({ layout }) {
  return layout.objects.length ? layoutJson(layout) : "";
}

function soundLook(look, layout) {
  const entries = layout.objects.flatMap(({ id }) => {
    const given = look && Object.hasOwn(look, id) ? look[id] : null;
    if (given === null || typeof given !== "object") return [];
    const sound = {};
    if (typeof given.colour === "string" && COLOUR.test(given.colour)) sound.colour = given.colour;
    for (const flag of ["locked", "hidden"]) if (given[flag] === true) sound[flag] = true;
    return Object.keys(sound).length ? [[id, sound]] : [];
  });
  return Object.fromEntries(entries);
}

export const objectOf = (drawing, id) => drawing.layout.objects.find((object) => object.id === id) ?? null;

export const lookOf = (drawing, id) => (Object.hasOwn(drawing.look, id) ? drawing.look[id] : {});

// Objects of one phrase share a colour until one is chosen, as they share their attention.
export function colourOf(drawing, id) {
  const chosen = lookOf(drawing, id).colour;
  if (chosen) return chosen;
  const phrases = [...new Set(drawing.layout.objects.map((object) => object.phrase))];
  return COLOURS[Math.max(phrases.indexOf(objectOf(drawing, id)?.phrase), 0) % COLOURS.length];
}

function withObjects(drawing, objects) {
  const layout = { ...drawing.layout, objects, planner: "hand" };
  return { layout, look: soundLook(drawing.look, layout) };
}

function changed(drawing, id, change) {
  return withObjects(
    drawing,
    drawing.layout.objects.map((object) => (object.id === id ? { ...object, ...change(object) } : object)),
  );
}

export function setLook(drawing, id, values) {
  const look = { ...drawing.look, [id]: { ...lookOf(drawing, id), ...values } };
  return { ...drawing, look: soundLook(look, drawing.layout) };
}

// Ids are a name and a number, like the planner's own.
function freshId(objects, name) {
  const taken = new Set(objects.map((object) => object.id));
  const stem = [...name].slice(0, 90).join("");
  for (let number = 1; ; number++) if (!taken.has(`${stem} ${number}`)) return `${stem} ${number}`;
}

function freshName(objects) {
  const taken = new Set(objects.map((object) => object.name));
  for (let number = 1; ; number++) if (!taken.has(`object ${number}`)) return `object ${number}`;
}

// A new object that is `box` the whole time; its keyframe stands where it was drawn, so that what is
// mended there stays the whole of its motion. Returns the drawing and the object's id.
export function addObject(drawing, box, time = 0) {
  const { objects } = drawing.layout;
  const name = freshName(objects);
  const id = freshId(objects, name);
  const keyframes = [{ time: tidyTime(time), box: tidy(box) }];
  const object = { id, name, phrase: name, keyframes, enter: 0, leave: 1 };
  return { drawing: withObjects(drawing, [...objects, object]), id };
}

export function removeObject(drawing, id) {
  return withObjects(drawing, drawing.layout.objects.filter((object) => object.id !== id));
}

// A copy, a little beside the original. Returns the drawing and the copy's id.
export function duplicateObject(drawing, id) {
  return pasteObjects(drawing, { objects: [objectOf(drawing, id)], look: drawing.look }, 0.03);
}

// Puts objects into the drawing under ids of their own. Returns the drawing and the last one's id.
export function pasteObjects(drawing, { objects, look = {} }, shift = 0) {
  let [all, looks, id] = [drawing.layout.objects, drawing.look, null];
  for (const object of objects) {
    const keyframes = object.keyframes.map((key) =>
      shift ? { ...key, box: tidy({ ...key.box, x: key.box.x + shift, y: key.box.y + shift }) } : key,
    );
    const taken = all.some((other) => other.id === object.id);
    const from = object.id;
    id = taken ? freshId(all, object.name) : from;
    all = [...all, { ...object, id, keyframes }];
    if (Object.hasOwn(look, from)) looks = { ...looks, [id]: { ...look[from], locked: false } };
  }
  return { drawing: withObjects({ ...drawing, look: looks }, all), id };
}

// Renames an object. The phrase follows while it was the name's own, the id while it was made of the
// name. Returns the drawing and the id it now has.
export function renameObject(drawing, id, name) {
  const object = objectOf(drawing, id);
  const text = [...name.trim()].slice(0, 200).join("");
  if (!object || !text || text === object.name) return { drawing, id };
  const others = drawing.layout.objects.filter((other) => other.id !== id);
  const [start, number] = [id.slice(0, object.name.length), id.slice(object.name.length)];
  const follows = start === object.name && /^ \d+$/.test(number);
  const newId = follows ? freshId(others, text) : id;
  const phrase = object.phrase === object.name ? text : object.phrase;
  const look = Object.hasOwn(drawing.look, id) ? { ...drawing.look, [newId]: drawing.look[id] } : drawing.look;
  return { drawing: changed({ ...drawing, look }, id, () => ({ id: newId, name: text, phrase })), id: newId };
}

export function setPhrase(drawing, id, phrase) {
  const text = [...phrase.trim()].slice(0, 200).join("");
  return text ? changed(drawing, id, () => ({ phrase: text })) : drawing;
}

// Which keyframe of an object stands at a time, -1 when none does.
export function keyAt(object, time, frames) {
  return object.keyframes.findIndex((key) => Math.abs(key.time - time) <= nearTime(frames));
}

// The box at a time: changes the keyframe that stands there, or adds one.
export function setBox(drawing, id, time, box, frames) {
  return changed(drawing, id, (object) => {
    const at = keyAt(object, time, frames);
    const key = { ...(at >= 0 ? object.keyframes[at] : { time: tidyTime(time) }), box: tidy(box) };
    // A new keyframe goes on as the motion that it interrupts.
    if (at < 0) {
      const before = object.keyframes.findLast((other) => other.time < time);
      if (before?.ease) key.ease = before.ease;
    }
    const others = object.keyframes.filter((_, index) => index !== at);
    return { keyframes: [...others, key].sort((a, b) => a.time - b.time) };
  });
}

export function addKey(drawing, id, time, frames) {
  const object = objectOf(drawing, id);
  if (!object || keyAt(object, time, frames) >= 0) return drawing;
  return setBox(drawing, id, time, boxAt(object, time), frames);
}

// The last keyframe stays: an object is somewhere.
export function removeKey(drawing, id, index) {
  if (objectOf(drawing, id).keyframes.length === 1) return drawing;
  return changed(drawing, id, ({ keyframes }) => ({ keyframes: keyframes.filter((_, other) => other !== index) }));
}

// A keyframe at another time, kept between its neighbours.
export function moveKey(drawing, id, index, time) {
  return changed(drawing, id, ({ keyframes }) => {
    const gap = 1e-4;
    const low = index > 0 ? keyframes[index - 1].time + gap : 0;
    const high = index < keyframes.length - 1 ? keyframes[index + 1].time - gap : 1;
    const to = tidyTime(Math.min(Math.max(time, low), high));
    return { keyframes: keyframes.map((key, other) => (other === index ? { ...key, time: to } : key)) };
  });
}

export function setEase(drawing, id, index, ease) {
  return changed(drawing, id, ({ keyframes }) => ({
    keyframes: keyframes.map((key, other) => {
      if (other !== index) return key;
      const { ease: _, ...even } = key;
      return ease === "linear" ? even : { ...even, ease };
    }),
  }));
}

// The whole path shifted, as far as every box of it stays on the canvas.
export function movePath(drawing, id, dx, dy) {
  return changed(drawing, id, ({ keyframes }) => {
    const room = (side, size, by) => {
      const low = Math.max(...keyframes.map(({ box }) => -box[side]));
      const high = Math.min(...keyframes.map(({ box }) => 1 - box[side] - box[size]));
      return Math.min(Math.max(by, low), high);
    };
    const [right, down] = [room("x", "w", dx), room("y", "h", dy)];
    return {
      keyframes: keyframes.map((key) => ({
        ...key,
        box: tidy({ ...key.box, x: key.box.x + right, y: key.box.y + down }),
      })),
    };
  });
}

// When an object is on stage; it leaves at least `least` after it enters.
export function setStage(drawing, id, { enter, leave }, least = 0.001) {
  return changed(drawing, id, (object) => {
    if (enter !== undefined) return { enter: tidyTime(Math.min(enter, object.leave - least)) };
    return { leave: tidyTime(Math.max(leave, object.enter + least)) };
  });
}

// ---- the clipboard -------------------------------------------------------------------------------

// Objects on the clipboard are a layout: what is copied here can be pinned, saved and generated.
export function copyJson({ layout }, ids = null) {
  const objects = ids ? layout.objects.filter((object) => ids.includes(object.id)) : layout.objects;
  return layoutJson({ ...layout, objects }, 1);
}

// Pastes a layout's objects; a LayoutError says why a text is none.
export function pasteJson(drawing, text) {
  const { objects } = parseLayout(text);
  if (!objects.length) throw new LayoutError("The layout on the clipboard has no objects.");
  const many = drawing.layout.objects.length + objects.length;
  if (many > 200) throw new LayoutError(`A layout may have 200 objects; with these it would have ${many}.`);
  return pasteObjects(drawing, { objects }, 0);
}
