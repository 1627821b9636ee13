// An artist draws a layout in the real frontend, with mouse and keyboard in headless Chromium. Prints
// what was seen as one line of JSON.
//
//   node editor.mjs PLAYWRIGHT_CORE CHROMIUM URL SCREENSHOTS_PREFIX (canvas|vue)
import { drag, dragTrack, faultsOf, field, launch, run, scrub } from "./hand.mjs";

const NAME = "<img src=x onerror=alert(1)>";
const VUE_NODES = "Comfy.VueNodes.Enabled"; // the server keeps it, so it is put back for whoever comes next
const seen = {};
let before;

const [browser, url, pictures, mode] = await launch();
try {
  const page = await browser.newPage({ viewport: { width: 1500, height: 1000 } });
  page.setDefaultTimeout(180_000);
  seen.faults = faultsOf(page);
  page.on("dialog", (dialog) => {
    if (dialog.type() !== "beforeunload") seen.faults.push(`a dialog: ${dialog.message()}`);
    dialog.accept(); // leaving unsaved work is what is meant here
  });

  await open(page);
  if (mode === "vue") {
    const version = await page.evaluate(() => window.__COMFYUI_FRONTEND_VERSION__ ?? "0.0");
    const vue = await page.evaluate(() => window.LiteGraph.vueNodesMode === true);
    // Earlier frontends had but a preview of it, which goes on showing nodes that are gone.
    if (!vue || Number(version.split(".")[1]) < 30) {
      await setVueNodes(page, before);
      console.log(JSON.stringify({ skipped: `frontend ${version} has no Nodes 2.0` }));
      await browser.close();
      process.exit(0);
    }
  }
  await page.evaluate(() => {
    const { app } = window;
    app.graph.clear();
    const node = window.LiteGraph.createNode("TTOM_LayoutEditor");
    node.pos = [0, 0];
    app.graph.add(node);
    node.setSize([440, 800]);
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [420, 110];
    app.canvas.setDirty(true, true);
  });
  await page.waitForTimeout(1500);
  await picture(page, "empty");

  // A box, its name, a second keyframe.
  await drag(page, [0.1, 0.15], [0.35, 0.4]);
  await page.keyboard.press("Enter");
  await page.keyboard.type("red circle");
  await page.keyboard.press("Enter");
  seen.drawn = await layout(page);
  await scrub(page, 1);
  await drag(page, [0.2, 0.3], [0.8, 0.55]);
  await picture(page, "keyframes");
  seen.moved = await layout(page);

  // Undo and redo, of the drag and of a second object that is no HTML.
  await page.keyboard.press("Control+z");
  seen.undone = await layout(page);
  await page.keyboard.press("Control+Shift+z");
  seen.redone = await layout(page);

  // The keyframe's diamond to another frame; the object copied and pasted, and that undone.
  await dragTrack(page, 0, 1, 0.9);
  seen.retimed = await layout(page);
  await page.keyboard.press("Control+c");
  await page.keyboard.press("Control+v");
  await page.waitForTimeout(300);
  seen.pasted = await layout(page);
  await page.keyboard.press("Control+z");
  await scrub(page, 0.5);
  await page.keyboard.press("Escape");
  await drag(page, [0.2, 0.65], [0.5, 0.9]);
  await page.keyboard.press("F2");
  await page.keyboard.type(NAME);
  await page.keyboard.press("Enter");
  await field(page, "w", "25%");
  await field(page, "x", "16px");
  await field(page, "enter", "5");
  await page.keyboard.press("l"); // locked: what follows changes nothing
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("Delete");
  seen.images = await page.locator(".ttom-editor img").count();
  await picture(page, "two objects");

  // ComfyUI's own keys did not act on the node.
  seen.nodes = await page.evaluate(() => window.app.graph._nodes.length);
  seen.value = await value(page);
  const saved = await page.evaluate(() => JSON.stringify(window.app.graph.serialize()));
  seen.looks = JSON.parse(saved).nodes[0].properties.ttom_look;

  // The workflow in a new page: the same drawing, seen and sent.
  await open(page);
  await page.evaluate((graph) => window.app.loadGraphData(JSON.parse(graph)), saved);
  await page.waitForTimeout(1500);
  seen.reloaded = await value(page);
  seen.labels = await page.locator(".ttom-label").allTextContents();
  seen.sent = await page.evaluate(async () => Object.values((await window.app.graphToPrompt()).output)[0].inputs.drawn);
  seen.looksAgain = await page.evaluate(() => window.app.graph._nodes[0].properties.ttom_look);

  // A layout and a picture from upstream, seen after a run, and taken.
  await page.evaluate(() => {
    const { app } = window;
    const [editor] = app.graph._nodes;
    const add = (type, pos, values) => {
      const node = window.LiteGraph.createNode(type);
      node.pos = pos;
      app.graph.add(node);
      for (const [name, text] of Object.entries(values)) node.widgets.find((widget) => widget.name === name).value = text;
      return node;
    };
    const plan = add("TTOM_LayoutPlanner", [-400, 0], { prompt: "a green triangle moves to the left" });
    const picture = add("EmptyImage", [-400, 420], { width: 64, height: 64, batch_size: 3, color: 0x335577 });
    plan.connect(0, editor, editor.inputs.findIndex(({ name }) => name === "layout"));
    picture.connect(0, editor, editor.inputs.findIndex(({ name }) => name === "frames"));
  });
  seen.run = await run(page);
  const upstream = page.locator('[data-act="upstream"]');
  await upstream.waitFor({ state: "visible" });
  await page.waitForTimeout(1000);
  await picture(page, "from upstream");
  seen.background = await pixel(page);
  await upstream.click();
  seen.taken = await layout(page);
  await picture(page, "taken");
  await setVueNodes(page, before);
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));

async function open(page) {
  await page.goto(url);
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph?.registered_node_types?.TTOM_LayoutEditor);
  await page.waitForTimeout(1000);
  before ??= await page.evaluate((name) => window.app.extensionManager.setting.get(name), VUE_NODES);
  await setVueNodes(page, mode === "vue");
}

async function setVueNodes(page, on) {
  await page.evaluate(([name, on]) => window.app.extensionManager.setting.set(name, on), [VUE_NODES, Boolean(on)]);
  await page.waitForTimeout(500);
}

async function value(page) {
  return page.evaluate(() => {
    const editor = window.app.graph._nodes.find((node) => node.type === "TTOM_LayoutEditor");
    return editor.widgets.find((widget) => widget.name === "drawn").value;
  });
}

async function layout(page) {
  return JSON.parse(await value(page));
}

// The colour of the stage's canvas where nothing is drawn on the background.
function pixel(page) {
  return page.evaluate(() => {
    const canvas = document.querySelector(".ttom-stage");
    return [...canvas.getContext("2d").getImageData(canvas.width / 2, canvas.height * 0.08, 1, 1).data.slice(0, 3)];
  });
}

async function picture(page, name) {
  await page.waitForTimeout(300);
  await page.screenshot({ path: `${pictures} ${name}.png` });
}
