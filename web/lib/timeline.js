// A schedule as a row of steps: reused, computed in part, computed whole.

import { h } from "./dom.js"
import { percent, t } from "./i18n.js"

const STAGES = ["reused", "selective", "full"]

/** Steps 0 … steps−1 with K1 and K2; shares: computed share of the tokens in each selective step. */
export class Timeline {
  constructor({ steps, k1, k2, shares = [] }) {
    this.steps = Array.from({ length: steps }, (_, step) => {
      const stage = step < k1 ? 0 : step < k2 ? 1 : 2
      const share = stage === 0 ? 0 : stage === 1 ? (shares[step - k1] ?? 1) : 1
      const label = t(`timeline.${STAGES[stage]}`, { step: step + 1, share: percent(share) })
      const bar = h("span", { class: "chorus-bar", style: { height: `${Math.max(share, 0.08) * 100}%` } })
      return h("span", { class: `chorus-step chorus-stage-${stage + 1}`, title: label }, bar)
    })
    const summary = t("timeline.summary", { k1, selective: k2 - k1, full: steps - k2, steps })
    this.element = h("div", { class: "chorus-timeline", role: "img", "aria-label": summary }, this.steps)
  }

  /** Mark the first `done` steps as passed; the next one is under way. */
  progress(done) {
    this.element.classList.add("chorus-running")
    this.steps.forEach((step, index) => {
      step.classList.toggle("chorus-done", index < done)
      step.classList.toggle("chorus-now", index === done)
    })
  }
}

/** What the colours mean, only the stages that occur. */
export function legend({ steps, k1, k2 }) {
  const counts = [k1, k2 - k1, steps - k2]
  const items = STAGES.map((stage, index) =>
    counts[index] > 0 &&
    h("li", {}, h("span", { class: `chorus-swatch chorus-stage-${index + 1}` }), t(`legend.${stage}`, { count: counts[index] })))
  return h("ul", { class: "chorus-legend" }, items)
}
