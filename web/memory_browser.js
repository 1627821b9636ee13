// The memory browser in ComfyUI's sidebar.

import { app } from "../../scripts/app.js";
import { MemoryBrowser } from "./browser/browser.js";

app.registerExtension({
  name: "TTOM.MemoryBrowser",
  setup() {
    if (!app.extensionManager?.registerSidebarTab) return; // a frontend without a sidebar
    const link = document.createElement("link"); // its buttons are the editor's, which brings their style
    link.rel = "stylesheet";
    link.href = new URL("./browser/browser.css", import.meta.url).href;
    document.head.append(link);
    const browser = new MemoryBrowser(
      (path, options) => app.api.fetchApi(`/ttom/memories${path}`, options),
      (path) => new URL(app.api.apiURL(`/ttom/memories${path}`), location.href).href,
    );
    app.api.addEventListener("execution_success", () => {
      if (browser.element.isConnected) browser.refresh();
    });
    app.extensionManager.registerSidebarTab({
      id: "ttom-memory",
      icon: "pi pi-book",
      title: "Memory",
      tooltip: "What TTOM's memories hold",
      type: "custom",
      render(place) {
        place.append(browser.element);
        browser.refresh();
      },
    });
  },
});
