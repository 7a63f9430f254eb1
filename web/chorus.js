// Chorus in ComfyUI's frontend: results on the nodes, and the cache panel.

import { app } from "../../scripts/app.js"
import { loadTexts } from "./lib/i18n.js"
import { h } from "./lib/dom.js"
import { decorate, followRuns, show } from "./lib/on_nodes.js"

app.registerExtension({
  name: "Chorus",

  async init() {
    document.head.append(h("link", { rel: "stylesheet", href: new URL("./chorus.css", import.meta.url).href }))
    await loadTexts()
  },

  async setup() {
    followRuns()
  },

  nodeCreated(node) {
    decorate(node, () => {})
  },

  loadedGraphNode(node) {
    show(node, app.nodeOutputs?.[node.id])
  },
})
