// One gesture: the menu of a sampler, or of the subgraph that it is in, adds Chorus to its graph, wired, and takes it
// away again.
//
// Added are the node Chorus between the model and its sampler (both samplers of a pair), Chorus Cache Store behind the
// last one, and, where the text encoder's prompt is typed into its widget, a prompt node that both share. That node
// keeps whose text it took, so that taking all of it away leaves the graph as it was.

import { app } from "../../scripts/app.js"
import { allNodes } from "./lib/graph.js"
import { t } from "./lib/i18n.js"

const CHORUS = "Chorus"
const STORE = "ChorusCacheStore"
const PROMPT = "PrimitiveStringMultiline"
const ADDED = "chorus_added" // a property of the prompt node: the id of the text encoder whose widget had the text
const GAP = 60 // pixels between a new node and the others

const inputOf = (node, accept) => node.inputs?.findIndex(accept) ?? -1
const named = (...names) => (slot) => names.includes(slot.name)
const ofType = (type) => (slot) => slot.type === type
const outputOf = (node, type) => node.outputs?.findIndex(ofType(type)) ?? -1

/** What samples under a node's settings: the node itself or its guider, where one model goes in; else null. */
function guiderOf(node) {
  const models = node.inputs?.filter(ofType("MODEL")) ?? []
  if (models.length === 1 && inputOf(node, named("positive", "conditioning")) >= 0) return node
  const slot = inputOf(node, ofType("GUIDER"))
  const guider = slot < 0 ? null : node.getInputNode(slot)
  return guider && guider !== node ? guiderOf(guider) : null
}

/**
 * Whether a node samples: it takes and gives a latent, and has a model and a prompt, or a guider that has them. A
 * subgraph may have all of this; its samplers are inside.
 */
function isSampler(node) {
  if (node.subgraph) return false
  if (inputOf(node, ofType("LATENT")) < 0 || outputOf(node, "LATENT") < 0) return false
  return guiderOf(node) !== null
}

/** Whether a sampler goes on from the latent that it is given as it is, because it adds no noise. */
function goesOn(sampler) {
  const widget = sampler.widgets?.find(named("add_noise"))
  if (widget) return widget.value === "disable" || widget.value === false
  const slot = inputOf(sampler, ofType("NOISE"))
  return slot >= 0 && sampler.getInputNode(slot)?.comfyClass === "DisableNoise"
}

/** The samplers of one run, [first, second] where two share a schedule, one handing its latent to the other. */
function pairOf(sampler) {
  const before = sampler.getInputNode(inputOf(sampler, ofType("LATENT")))
  if (before && isSampler(before) && goesOn(sampler)) return [before, sampler]
  const behind = sampler.getOutputNodes(outputOf(sampler, "LATENT")) ?? []
  const after = behind.find((node) => isSampler(node) && goesOn(node))
  return after ? [sampler, after] : [sampler]
}

/** The link into an input, null where there is none. */
function linkInto(node, slot) {
  const id = slot < 0 ? null : (node.inputs[slot]?.link ?? null)
  return id === null ? null : node.graph.getLink(id)
}

/** Connect an input to where a link comes from, which may be the border of a subgraph. */
function connectLike(link, node, slot) {
  const { graph } = node
  if (!link || slot < 0) return
  const { origin_id: from, origin_slot: output } = link
  if (graph.inputNode && from === graph.inputNode.id) graph.inputNode.slots[output].connect(node.inputs[slot], node)
  else graph.getNodeById(from).connect(output, node, slot)
}

/** The text encoder that a conditioning comes from, past nodes that add images to it; null where it is not here. */
function encoderOf(node, slot) {
  const seen = new Set()
  let at = slot < 0 ? null : node.getInputNode(slot)
  while (at && !seen.has(at)) {
    seen.add(at)
    if (inputOf(at, ofType("CLIP")) >= 0 && at.widgets?.some(named("text"))) return at
    const next = [named("positive"), ofType("CONDITIONING")].map((accept) => inputOf(at, accept)).find((i) => i >= 0)
    at = next === undefined ? null : at.getInputNode(next)
  }
  return null
}

/** The Chorus node that a sampler's model comes from; null where there is none. */
function chorusOf(sampler) {
  const guider = guiderOf(sampler)
  const from = guider?.getInputNode(inputOf(guider, ofType("MODEL")))
  return from?.comfyClass === CHORUS ? from : null
}

/**
 * The node that decodes what a sampler gives, past nodes that only cut or sort the latent; null where there is none
 * before the next run, or where the latent is joined with another one.
 */
function decoderOf(sampler) {
  const seen = new Set([sampler])
  for (const at of seen) {
    const behind = at.outputs.flatMap(({ type }, slot) => (type === "LATENT" ? (at.getOutputNodes(slot) ?? []) : []))
    const running = behind.filter((node) => node.mode === sampler.mode)
    const decoder = running.find((node) => outputOf(node, "IMAGE") >= 0)
    if (decoder) return decoder
    for (const node of running) {
      if (!isSampler(node) && node.inputs.filter(ofType("LATENT")).length === 1) seen.add(node)
    }
  }
  return null
}

/** A new node at the free place nearest to a node's upper left. It is bypassed or muted where that node is. */
function placed(type, near) {
  const node = LiteGraph.createNode(type)
  const { graph } = near
  node.mode = near.mode
  graph.add(node)
  const [width, height] = node.size
  const [left, top] = near.pos
  const free = (x, y) =>
    graph.nodes.every(
      ({ pos, size, id }) =>
        id === node.id ||
        x + width + GAP / 2 < pos[0] ||
        pos[0] + size[0] + GAP / 2 < x ||
        y + height + GAP / 2 < pos[1] - LiteGraph.NODE_TITLE_HEIGHT ||
        pos[1] + size[1] + GAP / 2 < y - LiteGraph.NODE_TITLE_HEIGHT,
    )
  for (let ring = 1; ; ring++) {
    const [right, down] = [ring * GAP, ring * GAP]
    const tried = [
      [left, top - height - down],
      [left - width - right, top],
      [left, top + near.size[1] + down],
      [left + near.size[0] + right, top],
    ]
    const place = tried.find(([x, y]) => free(x, y))
    if (place) {
      node.pos = place
      return node
    }
  }
}

/** Let Chorus and the text encoder have the same prompt. */
function sharePrompt(encoder, chorus) {
  const text = inputOf(encoder, named("text"))
  const prompt = inputOf(chorus, named("prompt"))
  const link = linkInto(encoder, text)
  if (link) return connectLike(link, chorus, prompt)
  const shared = placed(PROMPT, encoder)
  shared.title = t("gesture.prompt")
  shared.properties[ADDED] = encoder.id
  shared.widgets[0].value = encoder.widgets.find(named("text")).value
  shared.connect(0, encoder, text)
  shared.connect(0, chorus, prompt)
}

/** Add Chorus to the run that a sampler belongs to. */
function addChorus(sampler) {
  changed(sampler.graph, () => {
    const samplers = pairOf(sampler)
    const [first, last] = [samplers[0], samplers.at(-1)]
    const guider = guiderOf(first)
    const chorus = placed(CHORUS, first)
    const positive = inputOf(guider, named("positive", "conditioning"))
    connectLike(linkInto(guider, inputOf(guider, ofType("MODEL"))), chorus, inputOf(chorus, named("model")))
    connectLike(linkInto(first, inputOf(first, ofType("LATENT"))), chorus, inputOf(chorus, named("latent")))
    connectLike(linkInto(guider, positive), chorus, inputOf(chorus, named("positive")))
    chorus.connect(0, guider, inputOf(guider, ofType("MODEL")))
    if (last !== first) {
      const second = guiderOf(last)
      const model = inputOf(second, ofType("MODEL"))
      connectLike(linkInto(second, model), chorus, inputOf(chorus, named("low_noise_model")))
      chorus.connect(2, second, model)
    }
    const encoder = encoderOf(guider, positive)
    if (encoder) {
      connectLike(linkInto(encoder, inputOf(encoder, ofType("CLIP"))), chorus, inputOf(chorus, named("clip")))
      sharePrompt(encoder, chorus)
    }
    const store = placed(STORE, last)
    const decoder = decoderOf(last)
    last.connect(outputOf(last, "LATENT"), store, inputOf(store, named("latent")))
    chorus.connect(1, store, inputOf(store, named("chorus")))
    decoder?.connect(outputOf(decoder, "IMAGE"), store, inputOf(store, named("frames")))
  })
}

/** Take away the Chorus node before a sampler, its store, and the prompt node that it was given unless others use it. */
function removeChorus(sampler) {
  const chorus = chorusOf(sampler)
  const { graph } = sampler
  changed(graph, () => {
    const behind = (slot) => (chorus.outputs[slot].links ?? []).map((id) => graph.getLink(id))
    const around = [
      [0, "model"],
      [2, "low_noise_model"],
    ]
    for (const [output, input] of around) {
      const own = linkInto(chorus, inputOf(chorus, named(input))) ?? linkInto(chorus, inputOf(chorus, named("model")))
      for (const link of behind(output)) connectLike(own, graph.getNodeById(link.target_id), link.target_slot)
    }
    const stores = behind(1).map((link) => graph.getNodeById(link.target_id))
    const prompt = chorus.getInputNode(inputOf(chorus, named("prompt")))
    for (const node of [...stores.filter((node) => node.comfyClass === STORE), chorus]) graph.remove(node)
    const encoder = prompt?.properties[ADDED] === undefined ? null : graph.getNodeById(prompt.properties[ADDED])
    if (encoder && prompt.getOutputNodes(0).every((node) => node === encoder)) {
      encoder.widgets.find(named("text")).value = prompt.widgets[0].value
      graph.remove(prompt)
    }
  })
}

/** Change a graph as one step that can be undone. */
function changed(graph, change) {
  graph.beforeChange()
  try {
    change()
  } finally {
    graph.afterChange()
    graph.setDirtyCanvas(true, true)
  }
}

/** What the menu of a node offers: a subgraph's, for all samplers in it. */
export function menuOf(node) {
  const samplers = [...new Set(node.subgraph ? allNodes(node.subgraph) : [node])].filter(isSampler)
  if (!samplers.length) return []
  const add = samplers.some((sampler) => !chorusOf(sampler))
  const change = () =>
    samplers.forEach((sampler) => {
      if (add !== Boolean(chorusOf(sampler))) (add ? addChorus : removeChorus)(sampler) // a pair's second has its by then
    })
  const content = t(add ? "gesture.add" : "gesture.remove")
  return [null, { content, callback: () => changed(node.graph, change) }]
}
