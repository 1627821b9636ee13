// A layout as ttom_core/layout.py defines it: which object is where, when. The same JSON, the same
// checks, the same boxes between keyframes; a test holds the two together.
//
// Everything is normalised: positions and sizes to 0…1 of the canvas, times to 0…1 of the clip.

export const MAX_BYTES = 1_000_000;
const TOLERANCE = 1e-6;
const MAX_OBJECTS = 200;
const MAX_KEYFRAMES = 1000;

// The share of the way to the next keyframe that is gone after a share of the time to it.
export const EASES = {
  linear: (share) => share,
  in: (share) => share * share,
  out: (share) => share * (2 - share),
  in_out: (share) => share * share * (3 - 2 * share),
  hold: () => 0,
};

// What was wrong with a layout, in one sentence.
export class LayoutError extends Error {}

export function emptyLayout() {
  return { version: 1, prompt: "", objects: [], background: "", planner: "hand", unresolved: [] };
}

// Reads a layout; throws a LayoutError about the first thing that is wrong.
export function parseLayout(text) {
  if (text.length > MAX_BYTES) {
    throw new LayoutError(`The layout has ${text.length} characters; at most ${MAX_BYTES} are read.`);
  }
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new LayoutError("The layout is not valid JSON.");
  }
  return checkedLayout(value);
}

// The layout as JSON, keys in the order of the core; indented like its files when asked for.
export function layoutJson(layout, indent = 0) {
  return JSON.stringify(checkedLayout(layout), null, indent);
}

function checkedLayout(value) {
  fields(value, "the layout", ["objects"], ["version", "prompt", "background", "planner", "unresolved"]);
  if ((value.version ?? 1) !== 1) {
    throw new LayoutError(`The layout has version ${shown(value.version)}; this editor reads version 1.`);
  }
  list(value.objects, "objects", MAX_OBJECTS);
  const objects = value.objects.map((item, index) => checkedObject(item, `objects.${index}`));
  const ids = new Set();
  for (const { id } of objects) {
    if (ids.has(id)) throw new LayoutError(`Two objects have the id ${shown(id)}; give each its own.`);
    ids.add(id);
  }
  const unresolved = value.unresolved ?? [];
  list(unresolved, "unresolved", Infinity);
  return {
    version: 1,
    prompt: words(value.prompt ?? "", "prompt", 0, 20_000),
    objects,
    background: words(value.background ?? "", "background", 0, Infinity),
    planner: words(value.planner ?? "hand", "planner", 0, Infinity),
    unresolved: unresolved.map((text, index) => words(text, `unresolved.${index}`, 0, Infinity)),
  };
}

function checkedObject(value, place) {
  fields(value, place, ["id", "name", "phrase", "keyframes"], ["enter", "leave"]);
  const id = words(value.id, `${place}.id`, 1, 100);
  const name = words(value.name, `${place}.name`, 1, 200);
  const phrase = words(value.phrase, `${place}.phrase`, 1, 200);
  list(value.keyframes, `${place}.keyframes`, MAX_KEYFRAMES);
  if (!value.keyframes.length) {
    throw new LayoutError(`${place}.keyframes is empty; an object needs at least one keyframe.`);
  }
  const keyframes = value.keyframes.map((key, index) => checkedKeyframe(key, `${place}.keyframes.${index}`));
  for (let index = 1; index < keyframes.length; index++) {
    if (keyframes[index].time <= keyframes[index - 1].time) {
      throw new LayoutError(`${place}.keyframes: the times must rise; ${keyframes[index].time} does not.`);
    }
  }
  const enter = share(value.enter ?? 0, `${place}.enter`);
  const leave = share(value.leave ?? 1, `${place}.leave`);
  if (enter >= leave) {
    throw new LayoutError(`${place} enters at ${enter} and leaves at ${leave}; let it leave later than it enters.`);
  }
  return { id, name, phrase, keyframes, enter, leave };
}

function checkedKeyframe(value, place) {
  fields(value, place, ["time", "box"], ["ease"]);
  const time = share(value.time, `${place}.time`);
  const box = checkedBox(value.box, `${place}.box`);
  const ease = value.ease ?? "linear";
  if (!Object.hasOwn(EASES, ease)) {
    throw new LayoutError(`${place}.ease must be one of ${Object.keys(EASES).join(", ")}, not ${shown(ease)}.`);
  }
  // Even motion goes without saying, as in the core.
  return ease === "linear" ? { time, box } : { time, box, ease };
}

function checkedBox(value, place) {
  fields(value, place, ["x", "y", "w", "h"], []);
  const [x, y, w, h] = ["x", "y", "w", "h"].map((side) => number(value[side], `${place}.${side}`));
  if (w <= 0 || h <= 0) {
    throw new LayoutError(`${place} is ${w} wide and ${h} high; give it a width and a height above 0.`);
  }
  if (Math.min(x, y) < -TOLERANCE || Math.max(x + w, y + h) > 1 + TOLERANCE) {
    throw new LayoutError(`${place} reaches outside the canvas; keep it within 0 to 1.`);
  }
  return { x, y, w, h };
}

function fields(value, place, needed, optional) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new LayoutError(`${place} must be an object with fields, not ${shown(value)}.`);
  }
  for (const key of needed) {
    if (!Object.hasOwn(value, key)) throw new LayoutError(`${place} lacks ${key}.`);
  }
  for (const key of Object.keys(value)) {
    if (!needed.includes(key) && !optional.includes(key)) {
      throw new LayoutError(`${place} has a field ${shown(key)} that no layout has.`);
    }
  }
}

function list(value, place, most) {
  if (!Array.isArray(value)) throw new LayoutError(`${place} must be a list, not ${shown(value)}.`);
  if (value.length > most) throw new LayoutError(`${place} may have ${most} items, not ${value.length}.`);
}

function words(value, place, least, most) {
  if (typeof value !== "string") throw new LayoutError(`${place} must be text, not ${shown(value)}.`);
  if (/\p{Surrogate}/u.test(value)) throw new LayoutError(`${place} has half a character in it.`);
  const length = [...value].length;
  if (length < least) throw new LayoutError(`${place} is empty; give it at least a letter.`);
  if (length > most) throw new LayoutError(`${place} has ${length} characters; at most ${most} are allowed.`);
  return value;
}

function number(value, place) {
  if (typeof value !== "number" || !Number.isFinite(value)) {
    throw new LayoutError(`${place} must be a number, not ${shown(value)}.`);
  }
  return value;
}

function share(value, place) {
  if (number(value, place) < 0 || value > 1) throw new LayoutError(`${place} must be within 0 to 1, not ${value}.`);
  return value;
}

// A value as it may stand in a sentence: quoted, and short.
function shown(value) {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}

// The times of evenly spaced frames, the first at 0 and the last at 1.
export function frameTimes(count) {
  return Array.from({ length: count }, (_, frame) => (count > 1 ? frame / (count - 1) : 0));
}

// Whether an object is on stage at a time.
export function onStage(object, time) {
  return time >= object.enter - 1e-9 && time <= object.leave + 1e-9;
}

// The box of an object at a time, on stage or not: between keyframes as the earlier one's ease says,
// at rest before the first and after the last.
export function boxAt(object, time) {
  const { keyframes } = object;
  const next = keyframes.findIndex((key) => key.time > time);
  if (next === 0) return keyframes[0].box;
  if (next < 0) return keyframes.at(-1).box;
  const [start, end] = [keyframes[next - 1], keyframes[next]];
  const gone = EASES[start.ease ?? "linear"]((time - start.time) / (end.time - start.time));
  const between = (side) => start.box[side] + (end.box[side] - start.box[side]) * gone;
  return { x: between("x"), y: between("y"), w: between("w"), h: between("h") };
}
