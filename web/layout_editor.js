// The layout editor in ComfyUI: the widget of TTOM_LayoutEditor's input `drawn`. Its value is the layout
// as JSON, "" while nothing is drawn; colours, locks and hidden objects are the node's property ttom_look.

import { app } from "../../scripts/app.js";
import { LayoutEditor } from "./editor/editor.js";

const LEAST_WIDTH = 420;
const LEAST_HEIGHT = 500;

function drawingWidget(node, name) {
  let value = "";
  const beside = (other) => node.widgets?.find((widget) => widget.name === other);
  const isLinked = (input) => {
    const slot = node.inputs?.findIndex(({ name }) => name === input) ?? -1;
    return slot >= 0 && node.isInputConnected(slot);
  };
  // A value that comes over a wire is not known before a run.
  const own = (other) => (isLinked(other) ? undefined : beside(other)?.value);
  const editor = new LayoutEditor({
    context: () => ({
      width: own("width") ?? 832,
      height: own("height") ?? 480,
      frames: own("num_frames") ?? 81,
      prompt: own("prompt") ?? "",
    }),
    onChange(text, look) {
      value = text;
      if (Object.keys(look).length) node.properties.ttom_look = look;
      else delete node.properties.ttom_look;
      widget.callback?.(text);
      node.graph?.setDirtyCanvas(true, true);
    },
  });
  const widget = node.addDOMWidget(name, "TTOM_DRAWING", editor.element, {
    getValue: () => value,
    setValue(text) {
      value = typeof text === "string" ? text : "";
      editor.open(value, node.properties.ttom_look);
      editor.refresh();
    },
    getMinHeight: () => LEAST_HEIGHT,
    hideOnZoom: false,
  });
  for (const other of ["width", "height", "num_frames", "prompt"].map(beside).filter(Boolean)) {
    after(other, "callback", () => editor.refresh());
  }
  after(node, "onConnectionsChange", () => editor.refresh());
  after(node, "onExecuted", (output) => {
    editor.offer(output?.ttom_layout?.[0] ?? "", output?.ttom_used?.[0] === "upstream");
    editor.showFrames((output?.ttom_frames ?? []).map(address));
  });
  after(widget, "onRemove", () => editor.dispose());
  return { widget, minWidth: LEAST_WIDTH, minHeight: LEAST_HEIGHT };
}

// Lets an act follow a method, whether or not the object has it.
function after(object, method, act) {
  const before = object[method];
  object[method] = function (...values) {
    const result = before?.apply(this, values);
    act(...values);
    return result;
  };
}

function address({ filename, subfolder, type }) {
  return app.api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

app.registerExtension({
  name: "TTOM.LayoutEditor",
  init() {
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = new URL("./editor/editor.css", import.meta.url).href;
    document.head.append(link);
  },
  getCustomWidgets: () => ({ TTOM_DRAWING: drawingWidget }),
});
