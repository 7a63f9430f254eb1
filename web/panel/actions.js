// What the panel does to the open graph.

import { app } from "../../../scripts/app.js"
import { allNodes, isLookup } from "../lib/graph.js"
import { t } from "../lib/i18n.js"
import { workflow } from "../lib/routes.js"

const TITLE_LENGTH = 40

function tell(severity, detail) {
  app.extensionManager.toast.add({ severity, summary: "Chorus", detail, life: 6000 })
}

/** Open the graph that made an entry, as a workflow of its own. */
export async function openWorkflow(entry) {
  const graph = await workflow(entry.cache, entry.id)
  const name = entry.prompt.slice(0, TITLE_LENGTH)
  if (graph.workflow) await app.loadGraphData(graph.workflow, true, true, name)
  else app.loadApiJson(graph.prompt, name)
}

/** Let the next run of the open graph start from an entry, and only that one. */
export function startFrom(entry) {
  const lookups = allNodes().filter(isLookup)
  if (!lookups.length) return tell("warn", t("source.noNode"))
  for (const node of lookups) {
    const widget = node.widgets.find(({ name }) => name === "source")
    const where = node.widgets.find(({ name }) => name === "cache_name")
    widget.value = entry.id
    where.value = entry.cache
    widget.afterQueued = () => {
      widget.value = ""
      delete widget.afterQueued
    }
    node.setDirtyCanvas(true, true)
  }
  tell("success", t("source.set", { prompt: entry.prompt }))
}
