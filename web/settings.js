// Chorus in ComfyUI's settings dialog.

import { app } from "../../scripts/app.js"
import { h } from "./lib/dom.js"
import { t } from "./lib/i18n.js"
import { chooseLimit, status } from "./lib/routes.js"

const MODE = "Chorus.Default.Mode"
const THRESHOLD = "Chorus.Default.Threshold"
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

function limitInput({ limit_gb: limit, limit_from: fixed }) {
  const said = h("span", { class: "chorus-quiet", role: "status" }, fixed ? t("limit.fixed", { variable: fixed }) : "")
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
      said.textContent = t("limit.chosen", { limit: chosen.limit_gb })
    } catch (error) {
      said.textContent = error.message
    }
  })
  return h("span", { class: "chorus-setting" }, h("span", {}, input, " GB"), said)
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
    type: () => fromServer(limitInput),
    defaultValue: null,
  },
  {
    id: "Chorus.Cache.Folder",
    name: "Where the caches are",
    category: ["Chorus", "Caches", "Folder"],
    type: () => fromServer(({ folder }) => h("code", { class: "chorus-folder" }, folder)),
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
