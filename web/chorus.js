// Chorus in ComfyUI's frontend: results on the nodes, the cache panel, and settings.

import { app } from "../../scripts/app.js"
import { h } from "./lib/dom.js"
import { loadTexts, t } from "./lib/i18n.js"
import { decorate, followRuns, isLookup, show } from "./lib/on_nodes.js"
import { Panel } from "./panel/panel.js"
import { applyDefaults, settings } from "./settings.js"

const TAB = "chorus"
let panel

/** Show an entry of a cache in the panel. */
async function openEntry(cache, id) {
  const { sidebarTab } = app.extensionManager
  if (sidebarTab.activeSidebarTabId !== TAB) sidebarTab.toggleSidebarTab(TAB)
  panel.cache = cache
  await panel.started
  await panel.open(id)
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

  loadedGraphNode(node) {
    show(node, app.nodeOutputs?.[node.id])
  },
})
