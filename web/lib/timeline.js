// Times on the timeline: frames, typed values, and what lies under the pointer.

const GRID = 1_000_000;
export const tidyTime = (time) => Math.min(Math.max(Math.round(time * GRID) / GRID, 0), 1);

// The frame shown at a time, and the time of a frame; a clip of one frame has only time 0.
export const frameOf = (time, frames) => Math.round(time * (frames - 1));
export const timeOf = (frame, frames) =>
  frames > 1 ? tidyTime(Math.min(Math.max(frame, 0), frames - 1) / (frames - 1)) : 0;
export const snapTime = (time, frames) => (frames > 1 ? timeOf(frameOf(time, frames), frames) : 0);

// How far a time may be from a keyframe to be taken for it: less than half a frame.
export const nearTime = (frames) => (frames > 1 ? 0.49 / (frames - 1) : 1);

// A typed time: "12" and "12f" are frames, "50%" a share of the clip. Null when it is none.
export function parseTime(text, frames) {
  const found = /^\s*(\d+[.,]?\d*|[.,]\d+)\s*(f|%)?\s*$/i.exec(text);
  if (!found) return null;
  const value = Number(found[1].replace(",", "."));
  const time = found[2] === "%" ? value / 100 : frames > 1 ? value / (frames - 1) : 0;
  return time >= 0 && time <= 1 ? tidyTime(time) : null;
}

export function showTime(time, frames) {
  return String(Math.round(time * (frames - 1) * 10) / 10);
}

// What of an object's track lies at x, on a track `width` wide: a keyframe, the enter or leave edge,
// the bar between them, or nothing. `reach` is how near is near enough, in the unit of x.
export function markAt(object, x, width, reach) {
  const near = (time) => Math.abs(time * width - x);
  let key = -1;
  object.keyframes.forEach(({ time }, index) => {
    if (near(time) <= reach && (key < 0 || near(time) < near(object.keyframes[key].time))) key = index;
  });
  // At a bar's very end its edge would hide the keyframe or the other way round: the pointer decides,
  // outside the bar it means the edge.
  const edges = ["enter", "leave"].filter((edge) => near(object[edge]) <= reach);
  const edge = edges.sort((a, b) => near(object[a]) - near(object[b]))[0];
  if (edge && (key < 0 || near(object[edge]) < near(object.keyframes[key].time))) return { kind: edge };
  if (key >= 0) return { kind: "key", index: key };
  if (x > object.enter * width && x < object.leave * width) return { kind: "bar" };
  return { kind: "none" };
}
