// A schedule as a row of steps: reused, computed in part, computed whole.

import { h } from "./dom.js"
import { percent, t } from "./i18n.js"

const STAGES = ["reused", "selective", "full"]

/**
 * The computed share of the tokens in each step: 0 where it is reused, below 1 where only the changed part is. A run
 * that looked has computed its first step, too.
 */
function sharesOf({ steps, k1, k2, look = false, token_share: shares = [] }) {
  const shareOf = (step) => {
    if (step === 0 && look) return 1
    if (step < k1) return 0
    return step < k2 ? (shares[step - k1] ?? 1) : 1
  }
  return Array.from({ length: steps }, (_, step) => shareOf(step))
}

/** What a run costs, in full steps. */
export const costOf = (figures) => sharesOf(figures).reduce((sum, share) => sum + share, 0)

const stageOf = (share) => (share === 0 ? 0 : share < 1 ? 1 : 2)

function countsOf(shares) {
  return STAGES.map((_, stage) => shares.filter((share) => stageOf(share) === stage).length)
}

/**
 * figures: steps, k1, k2, look (whether the first step is a look), and token_share, the computed share of the tokens
 * in each step from K1 to K2.
 */
export class Timeline {
  constructor(figures) {
    const shares = sharesOf(figures)
    this.steps = shares.map((share, step) => {
      const stage = stageOf(share)
      const label = t(`timeline.${STAGES[stage]}`, { step: step + 1, share: percent(share) })
      const bar = h("span", { class: "chorus-bar", style: { height: `${Math.max(share, 0.08) * 100}%` } })
      return h("span", { class: `chorus-step chorus-stage-${stage + 1}`, title: label }, bar)
    })
    const [reused, selective, full] = countsOf(shares)
    const summary = t("timeline.summary", { steps: shares.length, reused, selective, full })
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
export function legend(figures) {
  const counts = countsOf(sharesOf(figures))
  const items = STAGES.map((stage, index) =>
    counts[index] > 0 &&
    h("li", {}, h("span", { class: `chorus-swatch chorus-stage-${index + 1}` }), t(`legend.${stage}`, { count: counts[index] })))
  return h("ul", { class: "chorus-legend" }, items)
}
