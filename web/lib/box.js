// Boxes under the pointer: found, drawn, moved, resized, snapped, typed in. All in shares of the canvas.

// Positions are kept to this grid: finer than a pixel of any video, short in a workflow file.
const GRID = 100_000;
export const SMALLEST = 0.005;

const round = (value) => Math.round(value * GRID) / GRID;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// The same box on the canvas, on the grid, and not too small to be seen.
export function tidy({ x, y, w, h }) {
  const [width, height] = [clamp(round(w), SMALLEST, 1), clamp(round(h), SMALLEST, 1)];
  return { x: round(clamp(x, 0, 1 - width)), y: round(clamp(y, 0, 1 - height)), w: width, h: height };
}

// The box spanned by two opposite corners.
export function fromCorners(a, b) {
  const [left, right] = [Math.min(a.x, b.x), Math.max(a.x, b.x)].map((x) => clamp(x, 0, 1));
  const [top, bottom] = [Math.min(a.y, b.y), Math.max(a.y, b.y)].map((y) => clamp(y, 0, 1));
  return { x: left, y: top, w: right - left, h: bottom - top };
}

export function moved(box, dx, dy) {
  return { ...box, x: clamp(box.x + dx, 0, 1 - box.w), y: clamp(box.y + dy, 0, 1 - box.h) };
}

export const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];

export function handlePoint(box, handle) {
  const x = handle.includes("w") ? 0 : handle.includes("e") ? 1 : 0.5;
  const y = handle.includes("n") ? 0 : handle.includes("s") ? 1 : 0.5;
  return { x: box.x + x * box.w, y: box.y + y * box.h };
}

// The handle of a box at a point, each reaching `near` = {x, y} around it; corners win over edges.
export function handleAt(box, point, near) {
  const hit = (handle) => {
    const at = handlePoint(box, handle);
    return Math.abs(at.x - point.x) <= near.x && Math.abs(at.y - point.y) <= near.y;
  };
  return [...HANDLES].sort((a, b) => b.length - a.length).find(hit) ?? null;
}

// Which of some boxes lies at a point: the smallest, so that one inside another can be reached.
export function boxUnder(boxes, point) {
  const inside = ({ x, y, w, h }) => point.x >= x && point.x <= x + w && point.y >= y && point.y <= y + h;
  let best = -1;
  boxes.forEach((box, index) => {
    if (!box || !inside(box)) return;
    if (best < 0 || box.w * box.h <= boxes[best].w * boxes[best].h) best = index;
  });
  return best;
}

// The box with one handle dragged; it turns over when dragged across its other side, and keeps its
// proportions when asked to.
export function resized(box, handle, dx, dy, keepProportions = false) {
  const fixed = handlePoint(box, opposite(handle));
  const drag = handlePoint(box, handle);
  const to = { x: clamp(drag.x + dx, 0, 1), y: clamp(drag.y + dy, 0, 1) };
  if (handle.length === 1) {
    const wide = handle === "e" || handle === "w";
    return wide
      ? { ...fromCorners({ x: fixed.x, y: box.y }, { x: to.x, y: box.y + box.h }) }
      : { ...fromCorners({ x: box.x, y: fixed.y }, { x: box.x + box.w, y: to.y }) };
  }
  if (!keepProportions) return fromCorners(fixed, to);
  const [right, down] = [to.x >= fixed.x ? 1 : -1, to.y >= fixed.y ? 1 : -1];
  const room = Math.min((right > 0 ? 1 - fixed.x : fixed.x) / box.w, (down > 0 ? 1 - fixed.y : fixed.y) / box.h);
  const wanted = Math.max(Math.abs(to.x - fixed.x) / box.w, Math.abs(to.y - fixed.y) / box.h);
  const scale = Math.min(wanted, room);
  return fromCorners(fixed, { x: fixed.x + right * scale * box.w, y: fixed.y + down * scale * box.h });
}

function opposite(handle) {
  const other = { n: "s", s: "n", e: "w", w: "e" };
  return [...handle].map((side) => other[side]).join("");
}

// Where edges and centres snap to: the canvas's own and those of other boxes.
export function snapLines(others) {
  return {
    x: [0, 0.5, 1, ...others.flatMap(({ x, w }) => [x, x + w / 2, x + w])],
    y: [0, 0.5, 1, ...others.flatMap(({ y, h }) => [y, y + h / 2, y + h])],
  };
}

// The shift that brings one of these values onto a line within reach, and that line; or no shift.
function nearest(values, lines, reach) {
  let best = { shift: 0, line: null, distance: reach };
  for (const value of values) {
    for (const line of lines) {
      const distance = Math.abs(line - value);
      if (distance <= best.distance && (best.line === null || distance < best.distance)) {
        best = { shift: line - value, line, distance };
      }
    }
  }
  return best;
}

// A moved box drawn onto lines within reach = {x, y}; with the lines it lies on, to be shown.
export function snapMoved(box, lines, reach) {
  const x = nearest([box.x, box.x + box.w / 2, box.x + box.w], lines.x, reach.x);
  const y = nearest([box.y, box.y + box.h / 2, box.y + box.h], lines.y, reach.y);
  return { box: moved(box, x.shift, y.shift), x: x.line, y: y.line };
}

// A point, such as the corner that is dragged, drawn onto lines within reach.
export function snapPoint(point, lines, reach) {
  const x = nearest([point.x], lines.x, reach.x);
  const y = nearest([point.y], lines.y, reach.y);
  return { point: { x: point.x + x.shift, y: point.y + y.shift }, x: x.line, y: y.line };
}

// A typed length as a share of the canvas: "32" and "32px" in pixels, "25%" in percent; a bare number
// is in the unit that is shown. Null when it is none.
export function parseLength(text, pixels, unit = "px") {
  const found = /^\s*([+-]?(?:\d+[.,]?\d*|[.,]\d+))\s*(px|%)?\s*$/i.exec(text);
  if (!found) return null;
  const value = Number(found[1].replace(",", "."));
  const share = (found[2] ?? unit) === "%" ? value / 100 : value / pixels;
  return Number.isFinite(share) ? share : null;
}

// A share of the canvas as it is shown, without needless digits.
export function showLength(share, pixels, unit = "px") {
  const value = unit === "%" ? share * 100 : share * pixels;
  return String(Math.round(value * 10) / 10);
}
