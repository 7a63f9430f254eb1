// Chorus in ComfyUI's frontend: results on the nodes, the cache panel, and settings.

import { app } from "../../scripts/app.js"
import { menuOf } from "./gesture.js"
import { h } from "./lib/dom.js"
import { isLookup } from "./lib/graph.js"
import { loadTexts, t } from "./lib/i18n.js"
import { decorate, followRuns, showRemembered } from "./lib/on_nodes.js"
import { Panel } from "./panel/panel.js"
import { applyDefaults, settings } from "./settings.js"

const TAB = "chorus"
let panel

/** Show an entry of a cache in the panel. */
function openEntry(cache, id) {
  const { sidebarTab } = app.extensionManager
  panel.open(cache, id)
  if (sidebarTab.activeSidebarTabId !== TAB) sidebarTab.toggleSidebarTab(TAB)
}

app.registerExtension({
  name: "Chorus",
  settings,

  async init() {
    document.head.append(h("link", { rel: "stylesheet", href: new URL("./chorus.css", import.meta.url).href }))
    await loadTexts()
  },

  async setup() {
    panel = new Panel()
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: "pi pi-history",
      title: t("panel.title"),
      tooltip: t("panel.tooltip"),
      type: "custom",
      render: (element) => panel.show(element),
    })
    followRuns()
  },

  nodeCreated(node) {
    if (isLookup(node)) applyDefaults(node)
    decorate(node, openEntry)
  },

  getNodeMenuItems(node) {
    return menuOf(node)
  },

  onNodeOutputsUpdated(outputs) {
    showRemembered(outputs)
  },
})
