// What the panel does to the open graph.

import { app } from "../../../scripts/app.js"
import { t } from "../lib/i18n.js"
import { workflow } from "../lib/routes.js"

const LOOKUPS = ["ChorusCacheLookup", "Chorus"]
const TITLE_LENGTH = 40

function tell(severity, detail) {
  app.extensionManager.toast.add({ severity, summary: "Chorus", detail, life: 6000 })
}

/** Open the graph that made an entry, as a workflow of its own. */
export async function openWorkflow(cache, entry) {
  const graph = await workflow(cache, entry.id)
  const name = entry.prompt.slice(0, TITLE_LENGTH)
  if (graph.workflow) await app.loadGraphData(graph.workflow, true, true, name)
  else app.loadApiJson(graph.prompt, name)
}

function allNodes(graph) {
  return graph.nodes.flatMap((node) => [node, ...(node.subgraph ? allNodes(node.subgraph) : [])])
}

/** Let the next run of the open graph start from an entry, and only that one. */
export function startFrom(cache, entry) {
  const lookups = allNodes(app.rootGraph ?? app.graph).filter((node) => LOOKUPS.includes(node.comfyClass))
  if (!lookups.length) return tell("warn", t("source.noNode"))
  for (const node of lookups) {
    const widget = node.widgets.find(({ name }) => name === "source")
    const where = node.widgets.find(({ name }) => name === "cache_name")
    widget.value = entry.id
    where.value = cache
    widget.afterQueued = () => {
      widget.value = ""
      delete widget.afterQueued
    }
    node.setDirtyCanvas(true, true)
  }
  tell("success", t("source.set", { prompt: entry.prompt }))
}
