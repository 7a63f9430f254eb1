// Puts results on the nodes, and follows a run while it samples.

import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"
import { followLosses } from "./lost.js"
import { Result } from "./result.js"

const LOOKUPS = new Set(["ChorusCacheLookup", "Chorus"])
const STORE = "ChorusCacheStore"
const IDLE_HEIGHT = 44
const [LEAST_HEIGHT, MOST_HEIGHT] = [110, 400]
const LEAST_WIDTH = 320
const MARGIN = 6

const results = new WeakMap() // node → Result
const all = new Set() // of them
let following = null // { node, shown: [Result] } of the run that samples now

/** Whether a node looks requests up. */
export const isLookup = (node) => LOOKUPS.has(node.comfyClass)

/** Give a Chorus node the element that shows its results. */
export function decorate(node, openEntry) {
  if (!isLookup(node) && node.comfyClass !== STORE) return
  const result = new Result(openEntry)
  results.set(node, result)
  all.add(result)
  let height = IDLE_HEIGHT
  const widget = node.addDOMWidget("chorus_result", "chorus_result", result.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => height,
    margin: MARGIN,
  })
  widget.serialize = false // neither in the saved workflow nor in the queued prompt
  result.grow = () => {
    height = Math.min(MOST_HEIGHT, Math.max(LEAST_HEIGHT, result.needs() + 2 * MARGIN))
    const [, least] = node.computeSize()
    node.setSize([Math.max(node.size[0], LEAST_WIDTH), Math.max(node.size[1], least)])
    node.setDirtyCanvas(true, true)
  }
  const executed = node.onExecuted
  node.onExecuted = function (output) {
    executed?.apply(this, arguments)
    show(node, output)
  }
  const removed = node.onRemoved
  node.onRemoved = function () {
    removed?.apply(this, arguments)
    all.delete(result)
    result.stop()
  }
}

/** Show what a node's output says, if it says anything. */
export function show(node, output) {
  const result = results.get(node)
  const [figures] = (node.comfyClass === STORE ? output?.chorus : output?.chorus_lookup) ?? []
  if (!result || !figures) return
  node.comfyClass === STORE ? result.finished(figures) : result.found(figures)
  result.grow()
}

/** The node of an id such as "12" or, within a subgraph, "10:3". */
function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph
  let node = null
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part))
    graph = node?.subgraph
  }
  return node
}

/** A node and all that take from it, directly or not. */
function downstream(start) {
  const seen = new Set([start])
  for (const node of seen) {
    const next = node.outputs?.flatMap((_, slot) => node.getOutputNodes?.(slot) ?? []) ?? []
    next.forEach((taker) => seen.add(taker))
  }
  return [...seen]
}

/** The stores that wait for a sampler; every one where the sampler is not in the open graph. */
function storesBehind(sampler) {
  const found = sampler ? downstream(sampler).filter((node) => node.comfyClass === STORE) : []
  return found.length ? found : (app.rootGraph ?? app.graph).nodes.filter((node) => node.comfyClass === STORE)
}

/** Listen to the server for runs and their progress. */
export function followRuns() {
  api.addEventListener("chorus.run", ({ detail }) => {
    const sampler = nodeOf(detail.node)
    const shown = storesBehind(sampler).map((node) => results.get(node)).filter(Boolean)
    following = { node: String(detail.node), shown }
    for (const result of shown) {
      result.started(detail)
      result.progress(detail.k1)
      result.grow()
    }
  })
  api.addEventListener("progress", ({ detail }) => {
    if (following && String(detail.node) === following.node) following.shown.forEach((result) => result.progress(detail.value))
  })
  followLosses((entry) => all.forEach((result) => result.entry === entry && (result.markLost(), result.grow())))
  for (const end of ["execution_interrupted", "execution_error"]) {
    api.addEventListener(end, () => {
      following?.shown.forEach((result) => result.timeline && result.idle())
      following = null
    })
  }
}
