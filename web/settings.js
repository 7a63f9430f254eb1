// Chorus in ComfyUI's settings dialog.

import { app } from "../../scripts/app.js"
import { h } from "./lib/dom.js"
import { said, t } from "./lib/i18n.js"
import { chooseLimit, choosePlace, status } from "./lib/routes.js"

const MODE = "Chorus.Default.Mode"
const THRESHOLD = "Chorus.Default.Threshold"
const HINTS = { folder: "/data/chorus", url: "postgresql://chorus@db.internal/chorus", blobs: "file:///…" }
const MODES = ["read and write", "read only", "write only", "off"]

/** An element that the server's status fills when it is there. */
function fromServer(draw) {
  const place = h("span", { class: "chorus" })
  status().then(
    (answer) => place.replaceChildren(draw(answer)),
    (error) => place.replaceChildren(h("span", { role: "alert" }, t("state.failed", { message: error.message }))),
  )
  return place
}

function limitInput({ limit_gb: limit, limit_fixed: fixed }) {
  const line = h("span", { class: "chorus-quiet", role: "status" }, fixed ? said(fixed) : "")
  const input = h("input", {
    type: "number",
    min: "0.1",
    step: "any",
    value: String(limit),
    disabled: Boolean(fixed),
    "aria-label": t("limit.label"),
  })
  input.addEventListener("change", async () => {
    try {
      const chosen = await chooseLimit(Number(input.value))
      line.textContent = t("limit.chosen", { limit: chosen.limit_gb })
    } catch (error) {
      line.textContent = error.message
    }
  })
  return h("span", { class: "chorus-setting" }, h("span", {}, input, " GB"), line)
}

/** Parts of the place of the caches, tried by the server before they are taken. */
function placeInput(parts, { place }) {
  const reasons = new Set(parts.map((part) => place[part].fixed).filter(Boolean).map(said))
  const line = h("span", { class: "chorus-quiet", role: "status" }, [...reasons].join(" "))
  const input = (part) =>
    h("input", {
      type: "text",
      value: place[part].value,
      placeholder: HINTS[part],
      disabled: Boolean(place[part].fixed),
      spellcheck: "false",
      "aria-label": t(`place.${part}`),
    })
  const inputs = Object.fromEntries(parts.map((part) => [part, input(part)]))
  const apply = async () => {
    const open = Object.entries(inputs).filter(([, field]) => !field.disabled)
    button.disabled = true
    line.textContent = t("place.trying")
    try {
      const chosen = await choosePlace(Object.fromEntries(open.map(([part, field]) => [part, field.value])))
      for (const [part, field] of open) field.value = chosen.place[part].value
      line.textContent = t("place.taken")
    } catch (error) {
      line.textContent = error.message
    }
    button.disabled = false
  }
  const button = h("button", { class: "chorus-button", onclick: apply }, t("place.apply"))
  const free = parts.some((part) => !place[part].fixed)
  return h("span", { class: "chorus-setting chorus-place" }, Object.values(inputs), free && button, line)
}

export const settings = [
  {
    id: MODE,
    name: "Mode of new look-up nodes",
    category: ["Chorus", "New nodes", "Mode"],
    type: "combo",
    options: MODES,
    defaultValue: MODES[0],
  },
  {
    id: THRESHOLD,
    name: "Threshold of new look-up nodes",
    tooltip: "0 takes the value calibrated for the embedding.",
    category: ["Chorus", "New nodes", "Threshold"],
    type: "number",
    attrs: { min: 0, max: 1, step: 0.01, maxFractionDigits: 2 },
    defaultValue: 0,
  },
  {
    id: "Chorus.Cache.Limit",
    name: "Size limit of each cache",
    category: ["Chorus", "Caches", "Limit"],
    sortOrder: 30,
    type: () => fromServer(limitInput),
    defaultValue: null,
  },
  {
    id: "Chorus.Cache.Folder",
    name: "Folder of the caches",
    category: ["Chorus", "Caches", "Folder"],
    sortOrder: 20,
    tooltip: "Applies to caches opened from now on. Empty takes ComfyUI's user folder.",
    type: () => fromServer((answer) => placeInput(["folder"], answer)),
    defaultValue: null,
  },
  {
    id: "Chorus.Cache.Shared",
    name: "Cache shared between machines",
    category: ["Chorus", "Caches", "Shared"],
    sortOrder: 10,
    tooltip: "A PostgreSQL database and a place for the files. Empty caches on this machine.",
    type: () => fromServer((answer) => placeInput(["url", "blobs"], answer)),
    defaultValue: null,
  },
]

/** Give a new look-up node what the settings say; a saved graph's own values follow and win. */
export function applyDefaults(node) {
  const set = (name, value) => {
    const widget = node.widgets?.find((candidate) => candidate.name === name)
    if (widget && value !== undefined && value !== null) widget.value = value
  }
  set("mode", app.extensionManager.setting.get(MODE))
  set("threshold", app.extensionManager.setting.get(THRESHOLD))
}
