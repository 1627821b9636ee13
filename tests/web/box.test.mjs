// Boxes under the pointer: whatever is dragged wherever, a box stays a box on the canvas.
import assert from "node:assert/strict";
import { test } from "node:test";

import {
  HANDLES, SMALLEST, boxUnder, fromCorners, handleAt, handlePoint, moved, parseLength, resized, showLength,
  snapLines, snapMoved, snapPoint, tidy,
} from "../../web/lib/box.js";

const near = (a, b) => assert.ok(Math.abs(a - b) < 1e-9, `${a} is not ${b}`);
const same = (a, b) => ["x", "y", "w", "h"].forEach((side) => near(a[side], b[side]));

// A small generator of numbers in 0…1, the same in every run.
function* numbers(seed = 1) {
  for (;;) yield (seed = (seed * 48271) % 2147483647) / 2147483647;
}

test("every drag ends on the canvas", () => {
  const random = numbers();
  const next = () => random.next().value;
  for (let trial = 0; trial < 2000; trial++) {
    const box = tidy({ x: next(), y: next(), w: next(), h: next() });
    const [dx, dy] = [4 * next() - 2, 4 * next() - 2];
    for (const handle of HANDLES) {
      for (const proportions of [false, true]) valid(tidy(resized(box, handle, dx, dy, proportions)));
    }
    valid(tidy(moved(box, dx, dy)));
    valid(tidy(fromCorners({ x: dx, y: dy }, { x: next(), y: next() })));
    const shift = moved(box, dx, dy);
    near(shift.w, box.w);
    near(shift.h, box.h);
  }
});

function valid({ x, y, w, h }) {
  assert.ok(w >= SMALLEST && h >= SMALLEST && x >= 0 && y >= 0 && x + w <= 1 + 1e-9 && y + h <= 1 + 1e-9);
}

test("a tidy box stays as it is", () => {
  const box = { x: 0.12345, y: 0.5, w: 0.25, h: 0.49999 };
  assert.deepEqual(tidy(box), box);
});

test("a handle moves its own sides only, and turns the box over across the other side", () => {
  const box = { x: 0.2, y: 0.2, w: 0.4, h: 0.2 };
  same(resized(box, "e", 0.1, 0.3), { x: 0.2, y: 0.2, w: 0.5, h: 0.2 });
  same(resized(box, "n", 0.1, -0.1), { x: 0.2, y: 0.1, w: 0.4, h: 0.3 });
  same(resized(box, "se", 0.1, 0.1), { x: 0.2, y: 0.2, w: 0.5, h: 0.3 });
  same(resized(box, "w", 0.5, 0), { x: 0.6, y: 0.2, w: 0.1, h: 0.2 });
});

test("proportions are kept, at the canvas's edge too", () => {
  for (const [dx, dy] of [[0.1, 0], [0, 0.3], [5, 5], [-0.05, -0.1], [-5, -5]]) {
    const { w, h } = resized({ x: 0.4, y: 0.4, w: 0.2, h: 0.1 }, "se", dx, dy, true);
    near(w, 2 * h);
  }
});

test("corners win over edges, and the handle is where it is drawn", () => {
  const box = { x: 0.2, y: 0.2, w: 0.02, h: 0.02 };
  assert.equal(handleAt(box, { x: 0.2, y: 0.2 }, { x: 0.02, y: 0.02 }), "nw");
  const large = { x: 0.2, y: 0.2, w: 0.5, h: 0.5 };
  for (const handle of HANDLES) assert.equal(handleAt(large, handlePoint(large, handle), { x: 0.01, y: 0.01 }), handle);
  assert.equal(handleAt(large, { x: 0.4, y: 0.4 }, { x: 0.01, y: 0.01 }), null);
});

test("a box inside another can be reached, a missing one is none", () => {
  const boxes = [{ x: 0.4, y: 0.4, w: 0.1, h: 0.1 }, { x: 0, y: 0, w: 1, h: 1 }, null];
  assert.equal(boxUnder(boxes, { x: 0.45, y: 0.45 }), 0);
  assert.equal(boxUnder(boxes, { x: 0.1, y: 0.1 }), 1);
  assert.equal(boxUnder([null], { x: 0.1, y: 0.1 }), -1);
});

test("boxes snap to the canvas and to each other, within reach only", () => {
  const lines = snapLines([{ x: 0.6, y: 0.6, w: 0.2, h: 0.2 }]);
  const reach = { x: 0.02, y: 0.02 };
  const snapped = snapMoved({ x: 0.01, y: 0.61, w: 0.1, h: 0.1 }, lines, reach);
  same(snapped.box, { x: 0, y: 0.6, w: 0.1, h: 0.1 });
  assert.equal(snapped.x, 0);
  near(snapped.y, 0.6);
  assert.deepEqual(snapMoved({ x: 0.21, y: 0.25, w: 0.1, h: 0.1 }, lines, reach).x, null);
  assert.deepEqual(snapPoint({ x: 0.795, y: 0.3 }, lines, reach), { point: { x: 0.8, y: 0.3 }, x: 0.8, y: null });
});

test("lengths are typed in pixels and percent", () => {
  near(parseLength("32", 64), 0.5);
  near(parseLength(" 32 px ", 64, "%"), 0.5);
  near(parseLength("12,5%", 64), 0.125);
  near(parseLength("12.5", 64, "%"), 0.125);
  for (const text of ["", "a", "1e5", "--1", "5 furlongs", "1/0", "NaN"]) assert.equal(parseLength(text, 64), null);
  assert.equal(showLength(1 / 3, 64), "21.3");
  assert.equal(showLength(0.5, 64, "%"), "50");
});
