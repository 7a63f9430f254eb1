// The open graph: which Chorus nodes it has, and which of them belong to the same run.

import { app } from "../../../scripts/app.js"

const LOOKUPS = new Set(["ChorusCacheLookup", "Chorus"])
const MADE_BY_A_RUN = new Set(["LATENT", "IMAGE", "MASK"]) // such an input may come from an earlier run, under another plan

/** Whether a node looks requests up. */
export const isLookup = (node) => LOOKUPS.has(node.comfyClass)

/** Whether a node stores runs, and shows what became of them. */
export const isStore = (node) => node.comfyClass === "ChorusCacheStore"

/** Every node of a graph, also those within its subgraphs. */
export function allNodes(graph = app.rootGraph ?? app.graph) {
  return graph.nodes.flatMap((node) => [node, ...(node.subgraph ? allNodes(node.subgraph) : [])])
}

/** The node of an id such as "12" or, within a subgraph, "10:3". */
export function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph
  let node = null
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part))
    graph = node?.subgraph
  }
  return node
}

/**
 * The look-ups whose plan a node works under. Where the links do not tell (they end at the border of a subgraph, or
 * the node is not in the open graph), the graph's only look-up; none where there are several.
 */
export function lookupsOf(node) {
  const found = new Set()
  const seen = new Set(node ? [node] : [])
  const visit = (other) => (isLookup(other) ? found : seen).add(other)
  for (const at of seen) {
    at.inputs?.forEach((input, slot) => {
      const from = MADE_BY_A_RUN.has(input.type) ? null : at.getInputNode?.(slot)
      if (from) visit(from)
      if (from?.subgraph) allNodes(from.subgraph).forEach(visit)
    })
  }
  if (found.size) return [...found]
  const every = allNodes().filter(isLookup)
  return every.length === 1 ? every : []
}

/** The stores that wait for a run under the plan of one of these look-ups. */
export function storesOf(lookups) {
  return allNodes().filter((node) => isStore(node) && lookupsOf(node).some((lookup) => lookups.includes(lookup)))
}
