// Puts results on the nodes, and follows a run while it samples.
//
// What a run reports (the event chorus.run, then the store's output) is shown on its stores and on its look-ups. The
// look-up's own answer is shown until then: the host may keep and repeat it although the cache has changed since.

import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"
import { allNodes, isLookup, isStore, lookupsOf, nodeOf, storesOf } from "./graph.js"
import { followLosses } from "./lost.js"
import { Result } from "./result.js"

const IDLE_HEIGHT = 44
const [LEAST_HEIGHT, MOST_HEIGHT] = [110, 400]
const LEAST_WIDTH = 320
const MARGIN = 6

const results = new WeakMap() // node → Result
const all = new Set() // of them
let following = null // { node, stores: [Result] } of the run that samples now

/** Give a Chorus node the element that shows its results. */
export function decorate(node, openEntry) {
  if (!isLookup(node) && !isStore(node)) return
  const result = new Result(openEntry)
  result.element.dataset.node = node.comfyClass
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

/** Tell the results of these nodes something, and let the nodes grow to what they then show. */
function tell(nodes, what) {
  for (const node of nodes) {
    const result = results.get(node)
    if (!result) continue
    what(result)
    result.grow()
  }
}

/** Show what a node's output says, if it says anything. */
function show(node, output) {
  const [answer] = (isLookup(node) && output?.chorus_lookup) || []
  const [report] = (isStore(node) && output?.chorus) || []
  if (answer) tell([node], (result) => result.answered(answer))
  if (!report) return
  tell([node], (result) => result.finished(report))
  tell(lookupsOf(node), (result) => result.reported({ ...report, masks: null })) // which the store shows
}

/** Show what the host remembers of the open graph's nodes (another tab was opened): reports last, they say more. */
export function showRemembered(outputs) {
  const nodes = allNodes()
  for (const node of [...nodes.filter(isLookup), ...nodes.filter(isStore)]) {
    show(node, outputs[node.graph?.isRootGraph === false ? `${node.graph.id}:${node.id}` : node.id])
  }
}

/** Listen to the server for runs and their progress. */
export function followRuns() {
  api.addEventListener("chorus.run", ({ detail: run }) => {
    const lookups = lookupsOf(nodeOf(run.node))
    const stores = storesOf(lookups)
    following = { node: String(run.node), stores: stores.map((node) => results.get(node)).filter(Boolean) }
    tell(lookups, (result) => result.reported(run))
    tell(stores, (result) => result.started(run))
  })
  api.addEventListener("progress", ({ detail }) => {
    if (following && String(detail.node) === following.node) following.stores.forEach((result) => result.progress(detail.value))
  })
  followLosses((entry) => all.forEach((result) => result.entry === entry && (result.markLost(), result.grow())))
  for (const end of ["execution_interrupted", "execution_error"]) {
    api.addEventListener(end, () => {
      following?.stores.forEach((result) => result.timeline && result.idle())
      following = null
    })
  }
}
