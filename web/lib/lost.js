// Results that were to be kept and are not: told at once, and remembered for the node that shows the run.

import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"
import { said, t } from "./i18n.js"

const MOST = 64
const TOAST_MS = 12_000
const lost = new Map() // entry id → the server's message

/** Why an entry was not kept; undefined while nothing is known against it. */
export const whyLost = (id) => lost.get(id)

/** Listen to the server. mark(id): an entry was not kept, perhaps long after its run. */
export function followLosses(mark) {
  api.addEventListener("chorus.not_kept", ({ detail }) => {
    const why = detail.said ?? detail.text
    app.extensionManager.toast.add({ severity: "warn", summary: t("lost.toast"), detail: said(why), life: TOAST_MS })
    if (!detail.entry) return // its run says so itself
    lost.set(detail.entry, why)
    if (lost.size > MOST) lost.delete(lost.keys().next().value)
    mark(detail.entry)
  })
}
